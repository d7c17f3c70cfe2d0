"""A study's values complete arms and check measurements."""

# sentences stand as they are told

import pytest

from builders.ledgers import a_study
from study_operator.spec.constraints import parse_outcome_constraint
from study_operator.spec.study import EarlyEvaluation, Promotion, complete_arm


def test_an_arm_is_completed_with_defaults_of_parameters_that_are_not_searched() -> None:
    assert complete_arm({"lora_rank": 8, "learning_rate": 1e-3})["lora_alpha"] == 16
    assert "lora_alpha" not in complete_arm({"lora_alpha_over_rank": 2.0})
    assert complete_arm({"batch_size": 4})["batch_size"] == 4


def test_a_measurement_without_the_constrained_metric_breaks_the_constraint() -> None:
    constraint = parse_outcome_constraint("invalid_output_rate <= 0.2")
    assert constraint is not None
    assert constraint.holds({"invalid_output_rate": 0.2})
    assert not constraint.holds({"invalid_output_rate": 0.21})
    assert not constraint.holds({})


@pytest.mark.parametrize(
    ("rungs", "percents", "promotion", "counts", "continuing"),
    [
        pytest.param((20,), (), {"num_promoted": 5, "num_audited": 3}, (5,), (9,), id="one early rung"),
        pytest.param((5, 20), (33,), {"num_promoted": 3}, (8, 3), (9, 4), id="a third of 23 arms, then three"),
        pytest.param(
            (5, 20), (1,), {"num_promoted": 3, "num_audited": 2}, (5, 3), (8, 8), id="enough to draw audits from"
        ),
        pytest.param((5, 10, 20), (50, 50), {"num_promoted": 2}, (12, 6, 2), (13, 7, 3), id="half and half of those"),
        pytest.param((5, 20), (100,), {"num_promoted": 2}, (23, 2), (24, 3), id="all of them"),
    ],
)
def test_a_share_of_those_on_each_rung_is_promoted_to_the_next(
    rungs: tuple[int, ...],
    percents: tuple[int, ...],
    promotion: dict[str, int],
    counts: tuple[int, ...],
    continuing: tuple[int, ...],
) -> None:
    study = a_study(
        early_evaluation=EarlyEvaluation(rungs=rungs), promotion=Promotion(promoted_percents=percents, **promotion)
    )
    assert study.count_promoted(24) == counts
    assert study.count_continuing(24) == continuing


def test_each_rung_ends_at_its_share_of_the_full_length() -> None:
    study = a_study(early_evaluation=EarlyEvaluation(rungs=(5, 20)))
    assert [study.stop_step(200, rung) for rung in range(study.last_rung + 1)] == [10, 40, 200]
    assert [study.stop_step(4, rung) for rung in range(3)] == [1, 1, 4]
