"""A study without a status goes on from its ledger's copy in the bucket, and from nobody else's."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from builders.desk import Desk, a_desk, a_proposal, put_copy, run
from builders.ledgers import (
    NOW,
    a_ledger,
    a_study,
    a_trial,
    continued,
    minimizing,
    of_three_rungs,
    paused,
    running,
)
from study_operator.ledger.bucket_copy import LedgerRefusedError, _identify_rungs, parse_earlier, render_copy
from study_operator.ledger.status import parse_status, render_status
from study_operator.ledger.trial import Trial
from study_operator.optimizer.designer import Suggestion
from study_operator.spec.study import (
    DataCurve,
    LogUniform,
    OutcomeConstraint,
    Parameter,
    Promotion,
    RankBy,
    Study,
    Uniform,
    WarmStart,
)
from trial_trainer.contract import (
    BaseModel,
)


def test_a_study_without_a_status_goes_on_from_the_ledger_in_its_bucket() -> None:
    ledger = a_ledger(paused(0, 0.3), running(a_trial(1)))
    desk = a_desk()
    put_copy(desk, ledger)
    result = run(desk)
    assert desk.log == ["write"]
    assert [(e.reason, e.message) for e in result.events] == [
        ("LedgerTakenUp", "desk/ledger.json is taken up: 2 trials, 1 measured")
    ]
    assert desk.ledger == ledger
    assert not result.is_idle
    # What ran is gone, and is launched again; what was measured is not.
    run(desk)
    run(desk, now=NOW + timedelta(minutes=5))
    assert [line for line in desk.log if "launch" in line] == ["launch s1-t001-r0"]


def test_a_suspended_study_takes_up_a_ledger_that_is_copied_later() -> None:
    desk = a_desk()
    run(desk, a_study(suspend=True))
    assert run(desk, a_study(suspend=True)).is_idle
    put_copy(desk, a_ledger(paused(0, 0.3)))
    run(desk)
    assert [m.value for t in desk.ledger.trials for m in t.measurements] == [0.3]
    assert desk.launched == []


def test_a_status_takes_precedence_over_the_ledger_in_the_bucket() -> None:
    desk = a_desk(a_ledger(paused(0, 0.3)), proposals=[a_proposal()])
    put_copy(desk, a_ledger(paused(0, 0.9), paused(1, 0.8)))
    run(desk)
    assert [m.value for t in desk.ledger.trials for m in t.measurements] == [0.3]


def test_fields_that_may_change_during_a_study_may_differ_from_the_copy() -> None:
    desk = a_desk()
    put_copy(desk, a_ledger(paused(0, 0.3)))
    run(desk, a_study(parallel_trials=4, num_trials=9, suspend=True, ttl_seconds_after_finished=5))
    assert len(desk.ledger.trials) == 1


OTHERS_LEDGERS = {
    "another seed": ({"seed": 1}, "must be of this spec, got that of another one"),
    "another base model": ({"base_model": BaseModel(uri="/other")}, "must be of this spec"),
    "another search space": ({"parameters": ()}, "must be of this spec"),
    "another UID": ({"uid": "01234567ffff"}, "got that of team/s1 with the UID 0123456789ab"),
    "another name": ({"name": "s2"}, "must be of this study, team/s2 with the UID 0123456789ab"),
}


@pytest.mark.parametrize(("changes", "sentence"), OTHERS_LEDGERS.values(), ids=OTHERS_LEDGERS)
def test_the_ledger_of_another_study_or_spec_is_refused_and_nothing_runs(
    changes: Mapping[str, Any], sentence: str
) -> None:
    desk = a_desk()
    put_copy(desk, a_ledger(paused(0, 0.3)))
    study = a_study(**changes)
    result = run(desk, study)
    assert [(e.reason, e.is_warning) for e in result.events] == [("LedgerRefused", True)]
    accepted = parse_status(desk.status).conditions["Accepted"]
    assert (accepted.is_true, accepted.reason) == (False, "LedgerRefused")
    assert sentence in accepted.message
    result = run(desk, study)
    assert result.is_idle
    assert (desk.log, result.refusal, result.events) == (["write"], accepted.message, [])
    # Mended by a person.
    del desk.objects["ledger.json"]
    run(desk, study)
    run(desk, study)
    assert desk.log[-1] == f"launch {study.name}-prepare"
    assert parse_status(desk.status).conditions["Accepted"].is_true


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"study": 3}', b"[" * 100_000, b'{"study": {}, "trials": [{}]}', b" " * (5 << 20)],
    ids=["nothing", "a list", "an empty object", "a number", "deep", "no trials", "too large"],
)
def test_a_malformed_ledger_copy_is_refused(text: bytes) -> None:
    desk = a_desk()
    desk.objects["ledger.json"] = text
    result = run(desk)
    assert result.refusal.startswith("desk/ledger.json must be ")
    assert len(result.refusal) < 500


def test_no_job_is_launched_while_the_ledger_copy_cannot_be_read() -> None:
    desk = a_desk(is_bucket_away=True)
    put_copy(desk, a_ledger(paused(0, 0.3)))
    run(desk)
    run(desk)
    assert desk.launched == []
    desk.is_bucket_away = False
    run(desk)
    assert len(desk.ledger.trials) == 1


def test_one_early_rung_is_identified_as_when_there_could_be_no_more() -> None:
    assert _identify_rungs(a_study()) == {
        "earlyEvaluation": {"checkpoint_percent": 20, "extra_percents": ()},
        "promotion": {"num_promoted": 1, "num_audited": 0},
    }
    digests = {json.loads(render_copy(study, {}))["study"]["digest"] for study in (a_study(), of_three_rungs())}
    assert len(digests) == 2


def test_a_data_curve_is_identified_as_when_nothing_could_be_compared() -> None:
    curve = DataCurve(sample_sizes=(200, 400))
    fields = {"arm": "Winner", "balanced": False, "least_gain": 0.01, "sample_sizes": (200, 400), "seeds": 3}
    assert _identify_rungs(a_study(data_curve=curve))["dataCurve"] == fields
    compared = _identify_rungs(a_study(data_curve=replace(curve, compare_augmentation=True)))["dataCurve"]
    assert compared == {**fields, "compare_augmentation": True}


# What an earlier study has learnt.


def a_learner(**changes: Any) -> Study:
    sources = tuple(WarmStart(uri=f"s3://studies/{name}") for name in ("one", "other"))
    return a_study(warm_start_from=sources, **changes)


def a_copy(*trials: Trial, study: Study | None = None, **changes: Any) -> bytes:
    study = study or a_study()
    return render_copy(study, render_status(study, a_ledger(*trials, **changes), now=NOW))


def test_an_earlier_study_tells_its_arms_and_how_good_they_were_on_the_first_rung() -> None:
    diverged = paused(3, 0.0)
    diverged = replace(diverged, measurements=(replace(diverged.measurements[0], diverged=True),))
    earlier = parse_earlier(a_learner(), a_copy(paused(0, 0.3), paused(1, 0.5), paused(2, 0.4), diverged), 0)

    assert [trial.merit for trial in earlier.trials] == [0.3, 0.5, 0.4, -math.inf]
    assert earlier.best == paused(1, 0.5).arm


def test_of_equals_in_an_earlier_study_the_best_lost_least() -> None:
    losses = {"validation_loss": 3.0}, {"validation_loss": 2.0}, {"validation_loss": 2.5}
    trials = [paused(i, 0.0, metrics=metrics) for i, metrics in enumerate(losses)]
    earlier = parse_earlier(a_learner(), a_copy(*trials), 0)
    assert [trial.standing for trial in earlier.trials] == [(0.0, -3.0), (0.0, -2.0), (0.0, -2.5)]
    assert earlier.best == trials[1].arm


def test_the_best_of_an_earlier_study_keeps_the_constraints_of_the_one_that_learns() -> None:
    rates = [{"invalid_output_rate": rate} for rate in (0.9, 0.1, 0.1)]
    trials = [paused(i, value, metrics=m) for (i, value), m in zip(enumerate((0.9, 0.5, 0.4)), rates, strict=True)]
    constraint = OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.2)
    for constraints, best in (((), 0), ((constraint,), 1)):
        learner = a_learner(outcome_constraints=constraints)
        assert parse_earlier(learner, a_copy(*trials), 0).best == trials[best].arm


@pytest.mark.parametrize(
    ("without_loss", "merits"),
    [
        pytest.param((), [-3.0, -2.0, -2.5], id="as this study ranks"),
        pytest.param((2,), [0.1, 0.2, 0.3], id="by the objective, where one has no loss"),
    ],
)
def test_an_earlier_study_ranks_as_the_one_that_learns(without_loss: Sequence[int], merits: Sequence[float]) -> None:
    study = a_learner(promotion=Promotion(num_promoted=1, rank_by=RankBy.VALIDATION_LOSS))
    losses = [{} if i in without_loss else {"validation_loss": loss} for i, loss in enumerate((3.0, 2.0, 2.5))]
    earlier = parse_earlier(study, a_copy(*(paused(i, (i + 1) / 10, metrics=m) for i, m in enumerate(losses))), 0)
    assert [trial.merit for trial in earlier.trials] == pytest.approx(merits)


def test_an_earlier_studys_winner_is_its_best_arm() -> None:
    trials = [paused(0, 0.3), continued(paused(1, 0.5), 0.6), paused(2, 0.7)]
    assert parse_earlier(a_learner(), a_copy(*trials, winner=1), 0).best == trials[1].arm


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"{}", "spec.warmStartFrom[1].uri must hold a ledger that this operator wrote, got KeyError('study')"),
        (b"[" * 100_000, "spec.warmStartFrom[1].uri must hold a ledger that this operator wrote, got RecursionError"),
        (
            a_copy(paused(0, 0.3), paused(1, 0.4)),
            "spec.warmStartFrom[1].uri must have at least 3 measured trials, got 2",
        ),
        (
            a_copy(*(paused(i, 0.3) for i in range(3)), study=minimizing()),
            "spec.warmStartFrom[1].uri must be of a study with the same objective, Maximize accuracy, got Minimize",
        ),
        (
            json.dumps({**json.loads(a_copy(paused(0, 0.3))), "study": {"name": "old"}}).encode(),
            "got one that does not tell its objective, as those of earlier versions",
        ),
    ],
    ids=["no ledger", "nested too deep", "too few trials", "another objective", "an earlier version"],
)
def test_what_nothing_can_be_learnt_from_is_refused(text: bytes, sentence: str) -> None:
    with pytest.raises(LedgerRefusedError) as refused:
        parse_earlier(a_learner(), text, 1)
    assert sentence in str(refused.value)


def test_an_earlier_study_that_searched_elsewhere_is_refused() -> None:
    text = a_copy(*(paused(i, 0.3) for i in range(3)))
    elsewhere = Parameter(name="learning_rate", search_space=LogUniform(min=1e-2, max=1e-1))
    with pytest.raises(LedgerRefusedError, match="a trial whose learning_rate lies in this study's search space, got "):
        parse_earlier(a_learner(parameters=(elsewhere,)), text, 0)
    other = Parameter(name="weight_decay", search_space=Uniform(min=0, max=0.1))
    with pytest.raises(LedgerRefusedError, match="must have searched one of weight_decay, got learning_rate"):
        parse_earlier(a_learner(parameters=(other,)), text, 0)


def test_the_optimizer_is_given_what_earlier_studies_measured() -> None:
    seen: list[Study] = []
    study = a_study(warm_start_from=(WarmStart(uri="s3://studies/earlier"),))
    desk = a_desk(a_ledger(paused(0, 0.3)), proposals=[a_proposal()], study=study)
    desk.objects["dataset/earlier/0.json"] = a_copy(*(paused(i, 0.1 * i) for i in range(3)))

    def suggest(study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        seen.append(study)
        return Desk.suggest(desk, study, trials, count)

    desk.suggest = suggest  # type: ignore[method-assign]
    run(desk, study)

    assert [len(earlier.trials) for earlier in seen[0].earlier] == [3]


def test_a_study_that_can_learn_nothing_from_an_earlier_one_begins_no_trial_and_says_why() -> None:
    study = a_study(warm_start_from=(WarmStart(uri="s3://studies/earlier"),))
    desk = a_desk(a_ledger(), proposals=[a_proposal()], study=study)
    desk.objects["dataset/earlier/0.json"] = a_copy(paused(0, 0.3))
    result = run(desk, study)

    assert result.refusal == "spec.warmStartFrom[0].uri must have at least 3 measured trials, got 1"
    assert desk.launched == []
