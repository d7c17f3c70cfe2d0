"""Constraints on outcomes and on parameters, as people write them."""

from __future__ import annotations

import re

from study_operator.spec.fields import ATTRIBUTE, NUMBER
from study_operator.spec.study import LinearConstraint, OutcomeConstraint

_OUTCOME = re.compile(rf"\s*([a-z_]+(?:/{ATTRIBUTE})?)\s*(<=|>=)\s*({NUMBER})\s*")


def parse_outcome_constraint(text: str) -> OutcomeConstraint | None:
    """Parse ``metric <= number`` or ``metric >= number``; None where it is neither."""
    match = _OUTCOME.fullmatch(text)
    if match is None:
        return None
    return OutcomeConstraint(metric=match[1], is_upper=match[2] == "<=", bound=float(match[3]))


_TERM = re.compile(rf"\s*([-+]?)\s*(?:({NUMBER})(?:\s*\*\s*([a-z_]+))?|([a-z_]+))")


def parse_linear_constraint(text: str) -> LinearConstraint | None:
    """Parse a linear inequality such as ``lora_dropout + 2 * weight_decay <= 0.3``; None where it is none."""
    sides = re.split(r"<=|>=", text)
    if len(sides) != 2:
        return None
    sign = 1.0 if "<=" in text else -1.0
    weights: dict[str, float] = {}
    bound = 0.0
    for side, factor in ((sides[0], sign), (sides[1], -sign)):
        terms = _parse_terms(side)
        if terms is None:
            return None
        for name, weight in terms:
            if name:
                weights[name] = weights.get(name, 0.0) + factor * weight
            else:
                bound -= factor * weight
    return LinearConstraint(text, tuple(weights.items()), bound) if weights else None


def _parse_terms(side: str) -> list[tuple[str, float]] | None:
    terms: list[tuple[str, float]] = []
    position = 0
    side = side.strip()
    while position < len(side):
        match = _TERM.match(side, position)
        if match is None or (terms and not match[1] and (match[2] or "+")[0] not in "+-"):
            return None
        sign = -1.0 if match[1] == "-" else 1.0
        terms.append((match[3] or match[4] or "", sign * float(match[2] or 1)))
        position = match.end()
    return terms or None
