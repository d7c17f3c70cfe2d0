"""A study's values complete arms and check measurements."""

# sentences stand as they are told

from study_operator.spec.constraints import parse_outcome_constraint
from study_operator.spec.study import (
    complete_arm,
)


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
