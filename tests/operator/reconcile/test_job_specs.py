"""What a job is told, as the contract has it."""

from dataclasses import replace
from typing import Any

import pytest

from builders.desk import a_desk, run
from builders.ledgers import (
    a_ledger,
    a_study,
    a_trial,
    continued,
    paused,
)
from study_operator.ledger.trial import (
    Ledger,
    SearchEnd,
)
from study_operator.optimizer.designer import Suggestion
from study_operator.reconcile.actions import Launch
from study_operator.reconcile.job_specs import build_prepare_job
from study_operator.spec.study import Teacher
from trial_trainer.contract import (
    FinalEvaluationConfig,
    LabelSource,
    PrepareConfig,
    TeacherSettings,
    TrialConfig,
    from_json,
)


def test_total_steps_follow_from_batch_size_and_training_samples() -> None:
    desk = a_desk(a_ledger(), proposals=[Suggestion(arm={"batch_size": 32}, generation_node="Sobol")])
    run(desk)
    # 3 epochs of 320 samples: 16 a step where the study does not say, else as many as the arm says.
    assert [t.total_steps for t in desk.ledger.trials] == [3 * 20, 3 * 10]


def test_a_winning_baseline_is_not_evaluated_twice() -> None:
    ledger = a_ledger(continued(paused(0, 0.3), 0.4), search_end=SearchEnd.ALL_TRIALS_MEASURED, winner=0)
    desk = a_desk(ledger)
    run(desk, a_study(num_trials=1))
    assert from_json(FinalEvaluationConfig, desk.launched[0].config).baseline is None


def test_the_config_of_a_trial_job_follows_the_contract() -> None:
    study = a_study(early_evaluation=replace(a_study().early_evaluation, extra_percents=(10, 50)))
    first, second = a_trial(1), continued(paused(2, 0.4), None)
    desk = a_desk(a_ledger(replace(first, index=0), replace(second, index=1)))
    result = run(desk, study)
    assert [a.rung for a in result.actions if isinstance(a, Launch)] == [0, 1]
    new, continuing = (from_json(TrialConfig, spec.config) for spec in desk.launched)
    root = "/bucket/team/s1-01234567"
    assert (new.stop_step, new.evaluate_at_steps, new.resume_from) == (20, (10,), None)
    assert (continuing.stop_step, continuing.evaluate_at_steps) == (100, (50,))
    assert continuing.resume_from == f"{root}/trials/t001/rungs/0"
    assert continuing.output == f"{root}/trials/t001/rungs/1"
    assert new.progress == f"{root}/trials/t000/progress.json"
    assert new.dataset == f"{root}/dataset"
    assert new.arm["lora_alpha"] == 32


def test_the_config_of_the_prepare_job_follows_the_contract() -> None:
    desk = a_desk(Ledger())
    run(desk)
    config = from_json(PrepareConfig, desk.launched[0].config)
    assert (config.source, config.dataset) == ("/pages", "/bucket/team/s1-01234567/dataset")


def test_the_teacher_of_the_prepare_job_has_no_key_and_keeps_answers_for_every_study() -> None:
    teacher = Teacher(endpoint="https://llm.example/v1", model="large", secret_name="key-of-it", temperature=0.0)
    study = a_study(data=replace(a_study().data, labels_from=LabelSource.TEACHER, teacher=teacher))
    spec = build_prepare_job(study)
    config = from_json(PrepareConfig, spec.config)
    assert config.teacher == TeacherSettings(
        endpoint="https://llm.example/v1", model="large", kept_answers="/bucket/team/teacher-answers", temperature=0.0
    )
    assert "key-of-it" not in spec.config
    assert build_prepare_job(a_study()).digest != spec.digest


@pytest.mark.parametrize(
    ("changes", "is_another"),
    [
        pytest.param({"parallel_requests": 9}, False, id="more requests at once"),
        pytest.param({"timeout_seconds": 9}, False, id="less patience"),
        pytest.param({"secret_name": "other"}, False, id="another Secret"),
        pytest.param({"model": "small"}, True, id="another model"),
        pytest.param({"endpoint": "https://other.example/v1"}, True, id="another server"),
        pytest.param({"instructions": "Be brief."}, True, id="other instructions"),
        pytest.param({"max_tokens": 1000}, True, id="a limit"),
    ],
)
def test_a_dataset_is_another_where_the_teacher_may_answer_otherwise(changes: Any, is_another: bool) -> None:
    teacher = Teacher(endpoint="https://llm.example/v1", model="large")
    data = replace(a_study().data, labels_from=LabelSource.TEACHER, teacher=teacher)
    first, second = (
        build_prepare_job(a_study(data=replace(data, teacher=t))).digest for t in (teacher, replace(teacher, **changes))
    )
    assert (first != second) is is_another
