"""The largest study that the schema allows keeps its object below a mebibyte, through every update."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from builders.some_manifests import MANIFEST
from builders.studies_on_a_server import Studies
from study_operator.errors import StudyInvalidError
from study_operator.ledger.folding import ATTEMPTS_KEPT, STAGE_ATTEMPTS_KEPT
from study_operator.ledger.status import (
    ACCEPTED_MESSAGE_BYTES,
    Reported,
    TrialProgress,
    parse_status,
    render_refusal,
    render_status,
)
from study_operator.ledger.texts import MESSAGE_BYTES, TRIAL_MESSAGE_BYTES
from study_operator.ledger.trial import (
    Attempt,
    Continuation,
    DatasetCounts,
    EarlierAttempts,
    Folded,
    GainOnTest,
    Ledger,
    Measurement,
    Origin,
    Outcome,
    SearchEnd,
    Stage,
    StageState,
    Trial,
    TrialState,
)
from study_operator.reasons import Problem
from study_operator.reconcile.settle import MANY_SITES, kept_metrics
from study_operator.spec import limits
from study_operator.spec.parse import parse_study
from study_operator.spec.study import Study
from trial_trainer.contract import Progress

MEBIBYTE = 2**20
NOW = datetime(2026, 11, 27, 12, 34, 56, 123456, tzinfo=UTC)
UID = "01234567-89ab-cdef-0123-456789abcdef"
LONG = 0.012345678901234567
WHOLES = {"lora_rank": 1024, "batch_size": 4096}


def a_number(value: int | float) -> str:
    """Return a number at its greatest length."""
    text = f"{value}." if "." not in str(value) else str(value)
    return text + "0" * (limits.NUMBER_LENGTH - len(text))


def a_word(number: int, length: int) -> str:
    """Return one of many words."""
    return f"{chr(97 + number // 26)}{chr(97 + number % 26)}".ljust(length, "x")


def a_template() -> dict[str, Any]:
    """Return a pod template of as many bytes as one may have."""
    template: dict[str, Any] = {"spec": {"containers": [{"name": "trainer", "args": []}]}}
    arguments = template["spec"]["containers"][0]["args"]
    # Many short words: each has two quotes, which the copy that `kubectl apply` keeps has to escape.
    room = limits.TEMPLATE_BYTES - len(json.dumps(template, separators=(",", ":")))
    arguments.extend(["--flag=1"] * (room // 11))
    arguments[-1] += "1" * (limits.TEMPLATE_BYTES - len(json.dumps(template, separators=(",", ":"))))
    return template


def a_place(start: str) -> str:
    return start.ljust(limits.PLACE_LENGTH, "x")


def a_largest_manifest(*, num_trials: int, constraints: int, rungs: int = 1) -> dict[str, Any]:
    """Return a manifest with everything at its bound, and so many constraints on an attribute's accuracy."""
    attributes = [a_word(i, limits.ATTRIBUTE_LENGTH) for i in range(limits.ATTRIBUTES_LENGTH)]
    names = ["learning_rate", "lora_rank", "lora_alpha_over_rank", "lora_dropout", "batch_size", "warmup_percent"]
    counts = range(1, limits.VALUES_LENGTH + 1)
    values = {name: [a_number(i if name in WHOLES else round(i / 1000, 3)) for i in counts] for name in names}
    spaces = {name: {"categorical": {"values": words, "ordered": True}} for name, words in values.items()}
    arm = {name: words[-1] for name, words in values.items()} | {"weight_decay": a_number(0.5)}
    bounds = {"min": a_number(0), "max": a_number(1)}
    linear = "weight_decay <= 0.9".ljust(limits.CONSTRAINT_LENGTH)
    bounded = [f"accuracy/{name} >= 0.1" for name in attributes[1 : constraints + 1]]
    bounded += ["false_value_rate <= 0.9"] * (limits.OUTCOME_CONSTRAINTS_LENGTH - constraints)
    return {
        **MANIFEST,
        "metadata": {"name": "s" * limits.NAME_LENGTH},
        "spec": {
            "objective": {"metric": f"accuracy/{attributes[0]}", "direction": "Maximize"},
            "outcomeConstraints": [text.ljust(limits.CONSTRAINT_LENGTH) for text in bounded],
            "parameters": [
                *({"name": name, "searchSpace": space} for name, space in spaces.items()),
                {"name": "weight_decay", "searchSpace": {"uniform": bounds}},
            ],
            "parameterConstraints": [linear] * limits.PARAMETER_CONSTRAINTS_LENGTH,
            "baseline": arm,
            "startingArms": [arm] * limits.STARTING_ARMS_LENGTH,
            "numTrials": num_trials,
            "parallelTrials": limits.PARALLEL_TRIALS.high,
            "maxFailedTrials": limits.MAX_FAILED_TRIALS.high,
            "seed": limits.SEED.high,
            "earlyEvaluation": {"rungs": list(range(50, 50 + rungs)), "extraPercents": list(range(10, 20))},
            "promotion": {
                "numPromoted": num_trials - 1,
                "numAudited": 0,
                "promotedPercents": [100] * (rungs - 1),
            },
            "budget": {"acceleratorHours": a_number(1e9), "activeDeadlineSeconds": limits.MAX_INT32},
            "data": {
                "source": a_place("s3://"),
                "testSource": a_place("s3://"),
                "attributes": attributes,
                "labels": {
                    "from": "Teacher",
                    "teacher": {
                        "endpoint": "https://".ljust(limits.ENDPOINT_LENGTH, "x"),
                        "model": "m" * limits.TEACHER_MODEL_LENGTH,
                        "secretName": "s" * limits.OBJECT_NAME_LENGTH,
                        "secretKey": "k" * limits.KEY_LENGTH,
                        "instructions": "i" * limits.TEACHER_INSTRUCTIONS_LENGTH,
                        "temperature": a_number(1),
                        "maxTokens": limits.TEACHER_MAX_TOKENS.high,
                    },
                },
                "maxPages": limits.MAX_PAGES.high,
                "template": a_template(),
            },
            "trainer": {
                "baseModel": {"uri": a_place("s3://"), "revision": "r" * limits.REVISION_LENGTH},
                "epochs": limits.EPOCHS.high,
                "maxLengthTokens": limits.MAX_LENGTH_TOKENS.high,
                "targetModules": [a_word(i, limits.MODULE_LENGTH) for i in range(limits.TARGET_MODULES_LENGTH)],
                "weightDecay": a_number(1),
                "nodes": limits.NODES.high,
                "acceleratorsPerNode": limits.ACCELERATORS_PER_NODE.high,
                "template": a_template(),
            },
            "storage": {
                "uri": a_place("s3://"),
                "endpoint": "https://".ljust(limits.ENDPOINT_LENGTH, "x"),
                "region": "r" * limits.REGION_LENGTH,
                "caBundle": {"configMapName": "c" * limits.OBJECT_NAME_LENGTH, "key": "k" * limits.KEY_LENGTH},
                "secretName": "s" * limits.OBJECT_NAME_LENGTH,
            },
            "ttlSecondsAfterFinished": limits.MAX_INT32,
        },
    }


def attempts(count: int, rung: int) -> tuple[Attempt, ...]:
    attempt = Attempt(rung=rung, started_at=NOW, finished_at=NOW, exit_code=137, reason="R" * 40, id=UID)
    return (attempt,) * count


EARLIER = EarlierAttempts(
    attempts=1234, seconds=123456.123456, first_rung_seconds=123456.123456, rung=1, faults=5, interruptions=50
)


def a_largest_trial(study: Study, index: int, **changes: Any) -> Trial:
    """Return a trial about which all is known that can be, in as many digits as there are."""
    arm = {p.name: WHOLES.get(p.name, -1.2345678901234567e-05) for p in study.parameters}
    measured = [
        Measurement(
            rung=rung,
            step=12_345_678,
            value=LONG,
            standard_error=0.0123457,
            n=1_234_567,
            sites=MANY_SITES - 1,
            metrics=dict.fromkeys(kept_metrics(study), 0.0123456789),
            checkpoint=f"trials/t{index:03d}/rungs/{rung}/{'k' * limits.CHECKPOINT_LENGTH}",
            train_seconds=1234567.1 if rung == 0 else None,
            fixed_seconds=1234567.1,
        )
        for rung in range(study.last_rung + 1)
    ]
    values: dict[str, Any] = {
        "index": index,
        "arm": arm,
        "origin": Origin.STARTING_ARM,
        "generation_node": "BoTorchGenerator",
        "state": TrialState.COMPLETED,
        "rung": study.last_rung,
        "total_steps": 12_345_678,
        # The longest of each.
        "continuation": Continuation.PROMOTED if study.last_rung == 1 else Continuation.AUDITED,
        "inclusion_probability": LONG,
        "audited_at": study.last_rung - 1 or None,
        "measurements": tuple(measured),
        "earlier_attempts": EARLIER,
        "message": "é" * TRIAL_MESSAGE_BYTES,
    }
    return Trial(**(values | changes))


def a_largest_status(study: Study, *, running: int) -> dict[str, Any]:
    """Return the status of as many trials as the study may have, of which some still run at full length."""
    done = study.num_trials - running
    each = ATTEMPTS_KEPT // done
    trials = [a_largest_trial(study, i, attempts=attempts(each + (i < ATTEMPTS_KEPT % done), 1)) for i in range(done)]
    trials += [
        a_largest_trial(study, i, state=TrialState.RUNNING, attempts=attempts(1, 1), measurements=t.measurements[:1])
        for i in range(done, study.num_trials)
        for t in [a_largest_trial(study, i)]
    ]
    message = "<" * MESSAGE_BYTES
    stage = Stage(
        state=StageState.FAILED,
        attempts=attempts(STAGE_ATTEMPTS_KEPT, 0),
        earlier_attempts=EARLIER,
        reason="R" * 64,
        message=message,
    )
    ledger = Ledger(
        trials=tuple(trials),
        folded=Folded(until=NOW, active_seconds=123456.123456),
        prepare=stage,
        dataset=DatasetCounts(fingerprint="f" * 200, train_samples=10**9, validation_samples=10**9, test_samples=10**9),
        search_end=SearchEnd.NO_MORE_PROPOSALS,
        search_message=message,
        winner=0,
        final_evaluation=stage,
        test_gain=GainOnTest(mean="hand_labelled", difference=LONG, low=-LONG, high=LONG, n=10**9),
        outcome=Outcome(failed=True, reason="R" * 64, message=message),
        cleaned_at=NOW,
    )
    progress = Progress(
        step=12_345_678,
        stop_step=12_345_678,
        total_steps=12_345_678,
        loss=LONG,
        phase="p" * 64,
        eta_seconds=1e9,
        updated_at=NOW.isoformat(),
    )
    status = render_status(
        study,
        ledger,
        now=NOW,
        reported=Reported(key="k" * 1000, at=NOW),
        storage_problem=Problem("R" * 64, message),
        progress=[TrialProgress.of(t, progress) for t in trials[done:]],
        report_uri=f"{study.storage.uri}/{study.namespace}/{study.name}-01234567/report/index.html",
    )
    # Refused in the end, which a newer operator may do: every mistake is told beside all that is known.
    problems = ["<" * ACCEPTED_MESSAGE_BYTES]
    return render_refusal(parse_status(status), "SpecInvalid", problems, 10**6, NOW + timedelta(days=1))


def stored_bytes(raw: Mapping[str, Any]) -> int:
    """Return the bytes of an object as an API server stores it: JSON as Go writes it, which escapes for HTML too."""
    text = json.dumps(raw, separators=(",", ":"), ensure_ascii=False)
    return len(text.encode()) + 5 * sum(map(text.count, "<>&"))


def trials_with(constraints: int, rungs: int = 1) -> int:
    """Return how many trials a study may have with so many constraints on an attribute's accuracy, and early rungs."""
    by_values = limits.LEDGER_VALUES // (7 + 2 * (rungs + 1) * constraints)
    return min(limits.MAX_TRIALS, by_values, limits.LEDGER_MEASUREMENTS // (rungs + 1))


@pytest.mark.parametrize(
    ("constraints", "rungs"),
    [(0, 1), (1, 1), (2, 1), (limits.OUTCOME_CONSTRAINTS_LENGTH, 1), (1, 2), (0, limits.RUNGS_LENGTH)],
)
def test_the_largest_study_stays_below_a_mebibyte_through_every_update(
    studies: Studies, constraints: int, rungs: int
) -> None:
    num_trials = trials_with(constraints, rungs)
    manifest = a_largest_manifest(num_trials=num_trials, constraints=constraints, rungs=rungs)
    name = manifest["metadata"]["name"]
    parse_study(manifest)
    # As `kubectl apply` makes it: with a second copy of all that was written.
    studies.kubectl_apply(manifest)
    raised = {**manifest, "spec": {**manifest["spec"], "parallelTrials": limits.PARALLEL_TRIALS.high - 1}}
    sizes = []
    most = min(num_trials - 1, limits.PARALLEL_TRIALS.high)
    for running in (most, most // 2, 0):
        study = parse_study(studies.get(name))
        written = studies.write_status(studies.get(name), a_largest_status(study, running=running))
        studies.kubectl_apply(raised)
        sizes += [stored_bytes(written), stored_bytes(studies.get(name))]
    assert "kubectl.kubernetes.io/last-applied-configuration" in studies.get(name)["metadata"]["annotations"]
    assert max(sizes) < MEBIBYTE
    studies.delete(name)


def test_one_trial_more_is_refused_where_the_ledger_would_grow_too_large(studies: Studies) -> None:
    for constraints in (1, 4):
        manifest = a_largest_manifest(num_trials=trials_with(constraints) + 1, constraints=constraints)
        assert "spec.numTrials: Invalid value: must not be so many" in studies.find_refusal(manifest)
        with pytest.raises(
            StudyInvalidError, match=f"`spec.numTrials` must be at most {trials_with(constraints)} with 7"
        ):
            parse_study(manifest)


def test_nothing_that_the_operator_writes_is_lost_or_refused(studies: Studies) -> None:
    manifest = a_largest_manifest(num_trials=60, constraints=2) | {"metadata": {"name": "kept"}}
    created = studies.create(manifest)
    study = parse_study(created)
    ledgers: dict[str, Ledger] = {
        "new": Ledger(),
        "half known": Ledger(
            trials=(Trial(index=0, arm={"learning_rate": 1e-3}, origin=Origin.BASELINE, total_steps=10),),
            prepare=Stage(state=StageState.RUNNING, attempts=(Attempt(rung=0, started_at=NOW, id=UID),)),
        ),
        "audited": Ledger(
            trials=tuple(
                a_largest_trial(study, i, continuation=Continuation.AUDITED if i % 2 else Continuation.PROMOTED)
                for i in range(20)
            ),
            prepare=Stage(state=StageState.COMPLETED),
        ),
    }
    statuses = {name: render_status(study, ledger, now=NOW) for name, ledger in ledgers.items()}
    statuses["refused at once"] = render_refusal(parse_status(None), "SpecInvalid", ["no"], 1, NOW)
    statuses["largest"] = a_largest_status(study, running=3)
    assert statuses["audited"]["agreement"]["missedWinners"] is not None
    written = created
    for name, status in statuses.items():
        written = studies.write_status(written, status)
        assert written["status"] == status, name
    studies.delete("kept")
