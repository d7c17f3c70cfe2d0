"""What a job is told, as the contract has it."""

from dataclasses import replace

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
from trial_trainer.contract import (
    FinalEvaluationConfig,
    PrepareConfig,
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
