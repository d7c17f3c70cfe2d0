"""The plan's arithmetic, by hand."""

from dataclasses import replace

import pytest

from builders.some_manifests import a_manifest
from builders.some_studies import a_study, a_summary
from study_operator.report.estimate import (
    Calibration,
    build_plan,
    describe_another_rung,
    describe_confirmations,
    describe_curve,
    describe_first_arms,
    describe_rungs,
    describe_steps,
    parse_calibration,
)
from study_operator.spec.parse import parse_study
from study_operator.spec.study import DataCurve, EarlyEvaluation, Promotion, TypicalArm
from trial_trainer.contract import ContractError

CALIBRATION = Calibration(train_seconds_per_page=2.0, evaluate_seconds_per_page=0.5, start_seconds=10.0)


def test_the_training_that_stopping_early_saves_needs_no_measurement():
    # 8 arms × 20 % + 4 × 80 % of 3 epochs, instead of 8 × 3.
    plan = build_plan(a_study(), None, None)

    assert plan.training_passes == pytest.approx(8 * 0.6 + 4 * 2.4)
    assert plan.full_passes == 24
    assert plan.saved_training_share == pytest.approx(1 - 14.4 / 24)
    assert plan.seconds is None and plan.wall_seconds is None and plan.saved_seconds is None


def test_seconds_follow_from_pages_and_a_calibration():
    plan = build_plan(a_study(), a_summary(), CALIBRATION)

    explore, promote, final_evaluation = plan.phases
    # 80 training pages, 40 validation pages, 140 test pages.
    assert explore.seconds == pytest.approx(8 * (10 + 0.6 * 80 * 2 + 40 * 0.5))
    assert promote.seconds == pytest.approx(4 * (10 + 2.4 * 80 * 2 + 40 * 0.5))
    assert final_evaluation.seconds == pytest.approx(10 + 4 * 140 * 0.5)
    assert plan.seconds == pytest.approx(sum(phase.seconds for phase in plan.phases))
    # Every trial in one go: one start, one evaluation, and three epochs.
    assert plan.full_seconds == pytest.approx(8 * (10 + 3 * 80 * 2 + 40 * 0.5))
    # Four arms do not train 80 %; four start and evaluate once more.
    assert plan.saved_seconds == pytest.approx(4 * 2.4 * 80 * 2 - 4 * (10 + 40 * 0.5))
    assert plan.wall_seconds == pytest.approx(plan.seconds)
    assert explore.arithmetic == (
        "8 × (10.0 s to start + 0.6 × 80 pages trained × 2.00 s + 1 × 40 pages read × 0.50 s)"
    )


def test_parallel_trials_shorten_the_wall_time_by_whole_rounds():
    alone = build_plan(a_study(), a_summary(), CALIBRATION)
    three = build_plan(replace(a_study(), parallel_trials=3), a_summary(), CALIBRATION)

    explore, promote, final_evaluation = (phase.seconds / phase.jobs for phase in alone.phases)
    assert three.wall_seconds == pytest.approx(3 * explore + 2 * promote + final_evaluation)


@pytest.mark.parametrize(
    ("promoted", "audited", "trials", "continuing"),
    [
        pytest.param(2, 1, 8, 4, id="promoted, audited and the baseline"),
        pytest.param(5, 3, 6, 6, id="never more than there are"),
    ],
)
def test_who_continues(promoted, audited, trials, continuing):
    study = replace(a_study(), num_trials=trials, promotion=Promotion(num_promoted=promoted, num_audited=audited))

    assert study.count_continuing(trials) == (continuing,)


def test_steps_are_said_for_each_batch_size():
    assert list(describe_steps(a_study(), a_summary())) == [
        "batch size 8: 3 epochs × ⌊320 / 8⌋ = 120 steps, the first measurement after 24",
        "batch size 16: 3 epochs × ⌊320 / 16⌋ = 60 steps, the first measurement after 12",
    ]


def test_a_calibration_is_the_last_line_of_what_was_said():
    text = 'loading\n{"train_seconds_per_page": 2, "evaluate_seconds_per_page": 0.5, "start_seconds": 10.0}\n\n'

    assert parse_calibration(text) == CALIBRATION


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("", "Calibration must be JSON: Expecting value: line 1 column 1 (char 0)", id="nothing"),
        pytest.param("boom", "Calibration must be JSON: Expecting value: line 1 column 1 (char 0)", id="talk"),
        pytest.param("[1]", "Calibration must be an object, got [1]", id="a list"),
        pytest.param(
            '{"train_seconds_per_page": -1, "evaluate_seconds_per_page": true}',
            "Calibration.train_seconds_per_page must be at least 0, got -1; "
            "Calibration.evaluate_seconds_per_page must be a number, got True; "
            "Calibration.start_seconds must be given",
            id="every figure wrong",
        ),
    ],
)
def test_a_wrong_calibration_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(ContractError) as refusal:
        parse_calibration(text)

    assert str(refusal.value) == f"the calibration must end with a line of JSON, got {text!r}: {sentence}"


def test_each_early_rung_is_a_row_of_the_plan():
    study = replace(
        a_study(),
        num_trials=24,
        early_evaluation=EarlyEvaluation(rungs=(5, 20), extra_percents=(10,)),
        promotion=Promotion(num_promoted=3, num_audited=1, promoted_percents=(33,)),
    )
    plan = build_plan(study, None, None)
    # Eight of 23 arms, the audited ones and the baseline go on; 24 × 5 %, 10 × 15 %, 6 × 80 % of three epochs.
    assert [(phase.name, phase.jobs) for phase in plan.phases] == [
        ("explore", 24), ("promote to 20 %", 10), ("promote", 6), ("final evaluation", 1),
    ]  # fmt: skip
    assert [phase.validation_passes for phase in plan.phases] == [24, 20, 6, 0]
    assert plan.training_passes == pytest.approx(3 * (24 * 0.05 + 10 * 0.15 + 6 * 0.8))
    assert describe_rungs(study) == (
        "laptop: 24 trials to 5 % of 3 epochs, then 10 to 20 %, 6 to the end (3 promoted, 2 audited, 1 from each early "
        "rung, the baseline); 1 at a time"
    )


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        pytest.param({}, "would train 14.85 passes (79% less), and start and evaluate again 12 times", id="saves"),
        pytest.param({"earlyEvaluation": {"checkpointPercent": 20, "extraPercents": [10]}}, "14.85", id="extra"),
        pytest.param({"earlyEvaluation": {"extraPercents": [5]}}, "", id="extra where it would end"),
        pytest.param({"earlyEvaluation": None}, "14.85", id="nothing given"),
        pytest.param({"earlyEvaluation": {"checkpointPercent": 30}}, "", id="another place"),
        pytest.param({"earlyEvaluation": {"rungs": [5, 20]}}, "", id="has both"),
        pytest.param({"promotion": {"numPromoted": 2, "numAudited": 3}}, "", id="audits on each rung cost more"),
        pytest.param({"numTrials": 400}, "", id="more trials than two rungs have room for"),
    ],
)
def test_the_plan_says_what_another_rung_would_save(changed, sentence):
    manifest = a_manifest()
    manifest["spec"].update({"numTrials": 24, "promotion": {"numPromoted": 2}, "earlyEvaluation": {}} | changed)
    line = describe_another_rung(parse_study(manifest), manifest)
    assert sentence in line
    assert bool(line) == bool(sentence)


def test_the_plan_names_the_typical_arms_and_how_to_leave_them_out():
    arm = TypicalArm(arm={"learning_rate": 7.8e-4, "batch_size": 16}, source="a paper")
    assert list(describe_first_arms(replace(a_study(), typical_arms=(arm,)))) == [
        "typical arm: learning_rate 0.00078, batch_size 16 (a paper); `spec.typicalArms: 0` leaves it out"
    ]


def test_further_seeds_are_a_row_of_full_length_runs_that_save_nothing():
    study = replace(a_study(), promotion=replace(a_study().promotion, confirm_seeds=3))
    alone, plan = (build_plan(each, a_summary(), CALIBRATION) for each in (a_study(), study))
    row = next(phase for phase in plan.phases if phase.name == "confirm seeds")
    assert (row.jobs, row.training_passes, row.validation_passes) == (6, 6 * 3, 6)
    assert plan.saved_seconds == alone.saved_seconds
    assert plan.seconds == pytest.approx(alone.seconds + 6 * (10 + 3 * 80 * 2 + 40 * 0.5 + 140 * 0.5))
    assert describe_confirmations(study) == (
        "confirmations: winner and baseline under 3 further seeds = 6 runs, after the promotions"
    )
    assert describe_confirmations(a_study()) == ""


def test_the_data_curve_has_a_row_for_each_size_and_saves_nothing():
    study = replace(a_study(), data_curve=DataCurve(sample_sizes=(80, 160, 5000), seeds=2))
    before, after = build_plan(study, None, None), build_plan(study, a_summary(), CALIBRATION)

    # Without a dataset nobody knows what part of a pass a size is; with 320 training samples 5000 are left out.
    assert [(p.name, p.jobs, p.training_passes) for p in before.phases if p.name.startswith("data curve")] == [
        ("data curve, 80 samples", 2, None),
        ("data curve, 160 samples", 2, None),
        ("data curve, 5000 samples", 2, None),
    ]
    assert [
        (p.name, p.training_passes, p.validation_passes) for p in after.phases if p.name.startswith("data curve")
    ] == [
        ("data curve, 80 samples", 2 * 0.25 * 3, 2),
        ("data curve, 160 samples", 2 * 0.5 * 3, 2),
    ]
    alone = build_plan(a_study(), a_summary(), CALIBRATION)
    assert after.saved_training_share == before.saved_training_share == alone.saved_training_share
    assert after.saved_seconds == alone.saved_seconds
    assert after.seconds == pytest.approx(
        alone.seconds
        + 2 * (2 * 10 + 0.75 * 3 * 80 * 2 + 2 * 40 * 0.5)
        # Four adapters more on the test set.
        + 4 * 140 * 0.5
    )
    assert describe_curve(study) == ("data curve: 3 sizes × 2 seeds = 6 runs of the winner's arm, after the promotions")


def test_where_augmentation_is_compared_the_data_curve_has_twice_the_runs():
    study = replace(a_study(), data_curve=DataCurve(sample_sizes=(80, 160), seeds=2, compare_augmentation=True))
    plan = build_plan(study, a_summary(), CALIBRATION)
    curve = [phase for phase in plan.phases if phase.name.startswith("data curve")]
    assert [(p.name, p.jobs, p.training_passes, p.validation_passes) for p in curve] == [
        ("data curve, 80 samples", 4, 4 * 0.25 * 3, 4),
        ("data curve, 160 samples", 4, 4 * 0.5 * 3, 4),
    ]
    assert describe_curve(study) == (
        "data curve: 2 sizes × 2 seeds × 2 (without variants and with them) = 8 runs of the winner's arm, "
        "after the promotions"
    )
