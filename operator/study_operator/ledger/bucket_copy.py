"""The ledger's copy in the bucket, which a study without a status goes on from: after a restore, for example.

A copy tells whose it is: the study with its UID, and the digest of all in the spec that decides its results. One of
another study, or of another spec, is never mixed with this one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from study_operator.errors import OperatorError, StatusUnreadableError
from study_operator.ledger.status import Recorded, parse_status
from study_operator.spec import limits
from study_operator.spec.study import RankBy, Study
from trial_trainer.contract import to_json

MOST_BYTES = 4 * 1024 * 1024
"""The largest status has a quarter of it."""

STUDY = "study"
"""Key of a copy under which it says whose it is; the rest is the status."""


class LedgerRefusedError(OperatorError):
    """The copy in the bucket is not this study's; a sentence says why, and what to do."""

    reason = "LedgerRefused"


def render_copy(study: Study, status: Mapping[str, Any]) -> bytes:
    """Render the copy of a status."""
    return json.dumps({**status, STUDY: _identify(study)}, allow_nan=False).encode()


def parse_copy(study: Study, text: bytes, place: str) -> Recorded:
    """Parse the copy of a status.

    Args:
        study: whose it must be.
        text: of the copy.
        place: where it lies, for sentences.

    Raises:
        LedgerRefusedError: where it is another's, or none that this operator wrote.
    """
    try:
        raw = json.loads(text)
        theirs = raw.pop(STUDY)
        recorded = parse_status(raw)
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError, StatusUnreadableError) as error:
        raise LedgerRefusedError(f"{place} must be a ledger that this operator wrote, got {error!r:.200}") from error
    ours, trials = _identify(study), recorded.ledger.runs
    if not isinstance(theirs, dict) or any(theirs.get(name) != ours[name] for name in ("namespace", "name", "uid")):
        raise LedgerRefusedError(f"{place} must be of this study, {_name(ours)}, got that of {_name(theirs)}")
    if theirs.get("digest") != ours["digest"]:
        raise LedgerRefusedError(
            f"{place} must be of this spec, got that of another one: what decides the results was changed since. Give "
            "the spec its former values, or the study another name, or delete what is below that prefix"
        )
    if [t.index for t in trials] != list(range(len(trials))) or len(trials) > limits.MAX_TRIALS:
        raise LedgerRefusedError(f"{place} must have every trial once and in order, at most {limits.MAX_TRIALS}")
    return recorded


def _identify(study: Study) -> dict[str, str]:
    """Return who a study is, and the digest of all in its spec that decides what is measured and chosen."""
    deciding = {
        "objective": study.objective,
        "outcomeConstraints": study.outcome_constraints,
        "parameters": study.parameters,
        "parameterConstraints": study.parameter_constraints,
        "baseline": study.baseline,
        "startingArms": study.starting_arms,
        "seed": study.seed,
        **_identify_rungs(study),
        "data": replace(study.data, template=None),
        "baseModel": study.base_model,
        "trainer": study.trainer,
        "nodes": study.nodes,
    }
    digest = hashlib.sha256(to_json(deciding).encode()).hexdigest()[:16]
    return {"namespace": study.namespace, "name": study.name, "uid": study.uid, "digest": digest}


def _identify_rungs(study: Study) -> dict[str, Any]:
    """Return what decides of rungs and data curve; of one early rung as it was written when there could be no more."""
    early, promotion = study.early_evaluation, study.promotion
    by_rung: dict[str, Any] = {}
    if study.last_rung > 1:
        by_rung = {"rungs": early.rungs, "promotedPercents": promotion.promoted_percents}
    if promotion.rank_by is not RankBy.OBJECTIVE:
        by_rung["rankBy"] = promotion.rank_by
    if study.data_curve is not None:
        curve = dict(vars(study.data_curve))
        if not curve["compare_augmentation"]:
            # As it was written when nothing could be compared.
            del curve["compare_augmentation"]
        by_rung["dataCurve"] = curve
    return {
        "earlyEvaluation": {"checkpoint_percent": early.rungs[0], "extra_percents": early.extra_percents},
        "promotion": {"num_promoted": promotion.num_promoted, "num_audited": promotion.num_audited},
        **by_rung,
    }


def _name(writer: Any) -> str:
    if not isinstance(writer, dict):
        return "nobody"
    return f"{writer.get('namespace')!s:.63}/{writer.get('name')!s:.63} with the UID {writer.get('uid')!s:.128}"
