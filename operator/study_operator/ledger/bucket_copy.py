"""The ledger's copy in the bucket, which a study without a status goes on from: after a restore, for example.

A copy tells whose it is: the study with its UID, and the digest of all in the spec that decides its results. One of
another study, or of another spec, is never mixed with this one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from study_operator.errors import OperatorError, StatusUnreadableError
from study_operator.ledger.merit import LOSS, find_merit
from study_operator.ledger.ranking import satisfies_constraints
from study_operator.ledger.status import Recorded, parse_status
from study_operator.ledger.trial import Trial
from study_operator.reasons import ConditionReason
from study_operator.spec import limits
from study_operator.spec.study import EarlierStudy, EarlierTrial, Parameter, RankBy, Study, find_broken_rule
from trial_trainer.contract import to_json

MOST_BYTES = 4 * 1024 * 1024
"""The largest status has a quarter of it."""

LEAST_EARLIER = 3
"""Measured trials of a study that another one learns from."""

STUDY = "study"
"""Key of a copy under which it says whose it is; the rest is the status."""


class LedgerRefusedError(OperatorError):
    """The copy in the bucket is not this study's; a sentence says why, and what to do."""

    reason = ConditionReason.LEDGER_REFUSED


class WarmStartRefusedError(LedgerRefusedError):
    """Nothing can be learnt from an earlier study; a sentence says why."""

    reason = ConditionReason.WARM_START_REFUSED


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


def parse_earlier(study: Study, text: bytes, index: int) -> EarlierStudy:
    """Parse the copy of another study's status, from which a study learns.

    Args:
        study: the one that learns.
        text: of the copy.
        index: which one of `Study.warm_start_from` it is.

    Raises:
        WarmStartRefusedError: where nothing can be learnt from it.
    """
    place = name_place(study, index)
    try:
        raw = json.loads(text)
        objective = raw.pop(STUDY).get("objective")
        ledger = parse_status(raw).ledger
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError, StatusUnreadableError) as error:
        raise WarmStartRefusedError(
            f"{place} must hold a ledger that this operator wrote, got {error!r:.200}"
        ) from error
    _refuse_other_objective(study, objective, place)
    trials = _list_earlier_trials(study, ledger.trials)
    if len(trials) < LEAST_EARLIER:
        raise WarmStartRefusedError(f"{place} must have at least {LEAST_EARLIER} measured trials, got {len(trials)}")
    _refuse_other_space(study, trials, place)
    winner = None if ledger.winner is None else ledger.trials[ledger.winner]
    best = max(trials, key=lambda trial: (trial.keeps_constraints, trial.standing)).arm
    if winner is not None:
        best = winner.arm
    return EarlierStudy(best=best, trials=tuple(trials))


def _list_earlier_trials(study: Study, trials: Sequence[Trial]) -> list[EarlierTrial]:
    """Return those measured on the first rung, as this study ranks there; by the objective where losses are missing."""
    measured = [(t, m) for t in trials if (m := t.measurement(0)) is not None]
    has_losses = all(LOSS in m.metrics for _, m in measured if not m.diverged)
    found = []
    for trial, m in measured:
        if m.diverged:
            found.append(EarlierTrial(arm=trial.arm, merit=-math.inf, keeps_constraints=False))
        else:
            merit = find_merit(study, m) if has_losses else study.objective.merit(m.value)
            keeps, loss = satisfies_constraints(study, m), m.metrics.get(LOSS, math.inf)
            found.append(EarlierTrial(arm=trial.arm, merit=merit, loss=loss, keeps_constraints=keeps))
    return found


def refuse_unlike(study: Study, other: Study, index: int) -> None:
    """Refuse a study from which nothing could be learnt whatever it will have measured.

    Args:
        study: the one that learns.
        other: the earlier one.
        index: which one of `Study.warm_start_from` it is.

    Raises:
        WarmStartRefusedError: where it has another objective, or no parameter in common.
    """
    place = name_place(study, index)
    _refuse_other_objective(study, _name_objective(other), place)
    _share_parameters(study, [parameter.name for parameter in other.parameters], place)


def name_place(study: Study, index: int) -> str:
    """Return the field that names an earlier study, for sentences."""
    return f"spec.warmStartFrom[{index}].{study.warm_start_from[index].field}"


def _refuse_other_objective(study: Study, objective: Any, place: str) -> None:
    ours = _name_objective(study)
    if objective != ours:
        raise WarmStartRefusedError(
            f"{place} must be of a study with the same objective, {ours}, got "
            f"{objective or 'one that does not tell its objective, as those of earlier versions'!s:.100}"
        )


def _share_parameters(study: Study, theirs: Sequence[str], place: str) -> list[Parameter]:
    """Return the parameters that another study has searched, too; refuse one that has none of them."""
    shared = [parameter for parameter in study.parameters if parameter.name in theirs]
    if not shared:
        ours = ", ".join(parameter.name for parameter in study.parameters)
        raise WarmStartRefusedError(f"{place} must have searched one of {ours}, got {', '.join(theirs)}")
    return shared


def _refuse_other_space(study: Study, trials: Sequence[EarlierTrial], place: str) -> None:
    """Refuse a study that searched elsewhere: none of this one's parameters, or no value that this one may try."""
    theirs = [name for name in trials[0].arm if all(name in trial.arm for trial in trials)]
    for parameter in _share_parameters(study, theirs, place):
        numbers = sorted(float(trial.arm[parameter.name]) for trial in trials)
        if all(find_broken_rule(parameter.search_space, number) for number in numbers):
            raise WarmStartRefusedError(
                f"{place} must have a trial whose {parameter.name} lies in this study's search space, got values from "
                f"{numbers[0]:g} to {numbers[-1]:g}"
            )


def _name_objective(study: Study) -> str:
    return f"{study.objective.direction} {study.objective.metric}"


def _identify(study: Study) -> dict[str, str]:
    """Return who a study is, and the digest of all in its spec that decides what is measured and chosen.

    Its objective stands there for those who learn from it.
    """
    deciding = {
        "objective": study.objective,
        "outcomeConstraints": study.outcome_constraints,
        "parameters": study.parameters,
        "parameterConstraints": study.parameter_constraints,
        "baseline": study.baseline,
        "startingArms": study.starting_arms,
        "seed": study.seed,
        **_identify_rungs(study),
        **({"warmStartFrom": study.warm_start_from} if study.warm_start_from else {}),
        "data": replace(study.data, template=None),
        "baseModel": study.base_model,
        "trainer": study.trainer,
        "nodes": study.nodes,
    }
    digest = hashlib.sha256(to_json(deciding).encode()).hexdigest()[:16]
    return {
        "namespace": study.namespace,
        "name": study.name,
        "uid": study.uid,
        "digest": digest,
        "objective": _name_objective(study),
    }


def _identify_rungs(study: Study) -> dict[str, Any]:
    """Return what decides of rungs and extra runs; of one early rung as it was written when there could be no more."""
    early, promotion = study.early_evaluation, study.promotion
    by_rung: dict[str, Any] = {}
    if study.last_rung > 1:
        by_rung = {"rungs": early.rungs, "promotedPercents": promotion.promoted_percents}
    if promotion.rank_by is not RankBy.OBJECTIVE:
        by_rung["rankBy"] = promotion.rank_by
    if promotion.confirm_seeds:
        by_rung["confirmSeeds"] = promotion.confirm_seeds
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
