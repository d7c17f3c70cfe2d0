"""Arms that are known to be good for LoRA, to be tried before anything is proposed: published settings and the centre.

Called by the parser. An arm takes from a setting what the study searches, each value being the nearest one that the
search space allows; the same arm is not tried twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from study_operator.spec.limits import DEFAULT_TYPICAL_ARMS
from study_operator.spec.study import Arm, Categorical, LinearConstraint, LogUniform, Parameter, TypicalArm, Uniform
from trial_trainer.contract import ParameterValue

QUARTER = 4
"""Where a study does not say how many typical arms it tries, they are at most one of so many trials."""

CENTRE = "the centre of the search space"


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What a source recommends. Alpha over the rank follows from the two."""

    source: str
    learning_rate: float
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    batch_size: int
    weight_decay: float
    warmup_percent: float

    def values(self) -> Mapping[str, float]:
        values = {name: value for name, value in vars(self).items() if name != "source"}
        return values | {"lora_alpha_over_rank": self.lora_alpha / self.lora_rank}


def count_by_default(num_trials: int) -> int:
    """Return how many of them a study tries that does not say how many."""
    return min(DEFAULT_TYPICAL_ARMS, num_trials // QUARTER)


def find_typical_arms(
    parameters: Sequence[Parameter],
    constraints: Sequence[LinearConstraint],
    model: str,
    given: Sequence[Arm],
) -> Iterator[TypicalArm]:
    """Yield the typical arms of a search space, the most promising first; none where it has parameters of its own.

    Args:
        parameters: the search space.
        constraints: what each arm must keep; one that does not is left out.
        model: URI of the base model, whose name tells its size: ``…/SmolLM2-135M-Instruct``.
        given: arms that are tried anyway.
    """
    tried = [dict(arm) for arm in given]
    settings = [(setting.source, setting.values()) for setting in _list_settings(model)]
    if any(parameter.name not in settings[0][1] for parameter in parameters):
        return
    settings.insert(1, (CENTRE, {p.name: find_centre(p) for p in parameters}))
    for source, values in settings:
        arm = {p.name: find_nearest(p, values[p.name]) for p in parameters}
        if arm not in tried and all(constraint.holds(arm) for constraint in constraints):
            tried.append(arm)
            yield TypicalArm(arm=arm, source=source)


def _list_settings(model: str) -> Iterator[_Setting]:
    billions = find_billions(model)
    is_large = billions is not None and billions > 20
    yield _Setting(
        source="Schulman et al. (2025), LoRA Without Regret",
        learning_rate=find_learning_rate(billions, is_qwen="qwen" in model.lower()),
        lora_rank=16,
        lora_alpha=32,
        lora_dropout=0.0,
        # LoRA loses more by large batches than full fine-tuning does (there too), and few samples make few steps.
        batch_size=4,
        weight_decay=0.0,
        warmup_percent=10,
    )
    yield _Setting(
        source="Dettmers et al. (2023), QLoRA",
        learning_rate=1e-4 if is_large else 2e-4,
        lora_rank=64,
        lora_alpha=16,
        lora_dropout=0.05 if is_large else 0.1,
        batch_size=16,
        weight_decay=0.0,
        warmup_percent=3,
    )
    yield _Setting(
        source="Hu et al. (2021), LoRA",
        learning_rate=2e-4,
        lora_rank=4,
        lora_alpha=32,
        lora_dropout=0.1,
        batch_size=8,
        weight_decay=0.01,
        warmup_percent=1,
    )


def find_billions(model: str) -> float | None:
    """Return how many billions of parameters a model's name says that it has; None where it says nothing."""
    found = re.findall(r"(?<![a-z0-9.])([0-9]+(?:\.[0-9]+)?)(m|b)(?![a-z0-9])", model.lower())
    if not found:
        return None
    number, unit = found[-1]
    return float(number) / (1000 if unit == "m" else 1)


def find_learning_rate(billions: float | None, *, is_qwen: bool) -> float:
    """Return ten times the learning rate of full fine-tuning, for a model of this size; of two digits.

    Schulman et al. (2025), "LoRA Without Regret": 5e-5 · 10 · (2000 / hidden size)^p, with p = 0.781 for Llama and
    0.0775 for Qwen; nearly the same for each rank, where alpha is 32. The hidden size is that of a model with
    12 · layers · hidden size² parameters (Kaplan et al. 2020, section 2.1) that is 128 times as wide as deep. A model
    that does not tell its size is taken for one of 2,000.
    """
    hidden = 2000.0 if billions is None else math.cbrt(billions * 1e9 * 128 / 12)
    return float(f"{5e-4 * (2000 / hidden) ** (0.0775 if is_qwen else 0.781):.1e}")


def find_nearest(parameter: Parameter, value: float) -> ParameterValue:
    """Return the value of a parameter's search space that is nearest to a number."""
    match parameter.search_space:
        case Categorical(values=values):
            numbers = [v for v in values if not isinstance(v, str)]
            return min(numbers, key=lambda number: (_find_distance(number, value), number))
        case Uniform(min=low, max=high) | LogUniform(min=low, max=high):
            return min(max(value, low), high)
        case _ as unknown:
            assert_never(unknown)


def _find_distance(one: float, other: float) -> float:
    """Return how far two values are apart: by their ratio, where both are above 0."""
    return abs(math.log(one / other)) if one > 0 and other > 0 else abs(one - other)


def find_centre(parameter: Parameter) -> float:
    """Return the middle of a parameter's range, of the logarithm where that is searched, or of its numbers."""
    match parameter.search_space:
        case Categorical(values=values):
            numbers = sorted(v for v in values if not isinstance(v, str))
            return numbers[(len(numbers) - 1) // 2]
        case Uniform(min=low, max=high):
            return (low + high) / 2
        case LogUniform(min=low, max=high):
            return float(f"{math.sqrt(low * high):.3g}")
        case _ as unknown:
            assert_never(unknown)
