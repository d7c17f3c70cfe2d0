"""The real Ax behind the designer's protocol: what it is told, and what it may answer."""

import itertools
import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import fisher_exact, spearmanr

from study_operator.ledger.trial import Measurement, Origin, Trial, TrialState

# Importing Ax takes seconds, so this module does it once for all its tests.
from study_operator.optimizer import ax
from study_operator.optimizer.ax import AxDesigner
from study_operator.optimizer.designer import EXPLORATION_NODE, WARM_START_NODE, DesignerError, Suggestion
from study_operator.optimizer.gaps import place
from study_operator.optimizer.reading import ModelReading
from study_operator.spec.constraints import parse_linear_constraint, parse_outcome_constraint
from study_operator.spec.metrics import Direction
from study_operator.spec.study import (
    Arm,
    Categorical,
    Data,
    EarlierStudy,
    EarlierTrial,
    LogUniform,
    Objective,
    Parameter,
    Promotion,
    RankBy,
    Storage,
    Study,
    Uniform,
)
from trial_trainer.contract import BaseModel, LabelSource, Split, TrainerSettings, from_json, to_json

# Ax and its libraries warn of each other's deprecations, and of their numerics, hundreds of times.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LEARNING_RATE = Parameter(name="learning_rate", search_space=LogUniform(min=1e-5, max=1e-2))
RANK = Parameter(name="lora_rank", search_space=Categorical(values=(4, 8, 16, 32, 64), ordered=True))
DROPOUT = Parameter(name="lora_dropout", search_space=Uniform(min=0.0, max=0.2))
DECAY = Parameter(name="weight_decay", search_space=Uniform(min=0.0, max=0.1))


def a_study(**changes: Any) -> Study:
    settings: dict[str, Any] = {
        "name": "study",
        "namespace": "default",
        "uid": "0",
        "objective": Objective(metric="accuracy", direction=Direction.MAXIMIZE),
        "parameters": (LEARNING_RATE, RANK, DROPOUT),
        "baseline": None,
        "num_trials": 100,
        "parallel_trials": 4,
        "max_failed_trials": 5,
        "promotion": Promotion(num_promoted=2),
        "data": Data(source="pages", attributes=("name",), labels_from=LabelSource.MARKUP, split=Split()),
        "base_model": BaseModel(uri="model"),
        "trainer": TrainerSettings(epochs=1, max_length_tokens=512),
        "storage": Storage(uri="runs"),
    }
    parsers = {"parameter_constraints": parse_linear_constraint, "outcome_constraints": parse_outcome_constraint}
    for name in parsers.keys() & changes.keys():
        changes[name] = tuple(parsers[name](text) for text in changes[name])
    return Study(**(settings | changes))


def a_trial(index: int, arm: Arm, state: TrialState = TrialState.PENDING, **changes: Any) -> Trial:
    return Trial(
        **({"index": index, "arm": arm, "origin": Origin.SUGGESTED, "state": state, "total_steps": 100} | changes)
    )


def measured(index: int, arm: Arm, value: float, *, diverged: bool = False, **metrics: float) -> Trial:
    measurement = Measurement(
        rung=0,
        step=20,
        value=value,
        standard_error=0.02,
        metrics=metrics,
        checkpoint="" if diverged else f"t{index:03d}",
        diverged=diverged,
    )
    return a_trial(index, arm, TrialState.PAUSED, measurements=(measurement,))


def a_random_arm(study: Study, dice: random.Random) -> Arm:
    def draw(parameter: Parameter) -> float | int | str:
        match parameter.search_space:
            case Categorical(values=values):
                return dice.choice(values)
            case LogUniform(min=lower, max=upper):
                return math.exp(dice.uniform(math.log(lower), math.log(upper)))
            case Uniform(min=lower, max=upper):
                return dice.uniform(lower, upper)

    return {parameter.name: draw(parameter) for parameter in study.parameters}


def accuracy(arm: Arm) -> float:
    """A smooth surface with its top at a learning rate of 1e-3 and rank 16."""
    rate = math.log10(float(arm["learning_rate"])) + 3
    rank = math.log2(float(arm["lora_rank"])) - 4
    return 0.8 - 0.1 * rate**2 - 0.01 * rank**2 - float(arm["lora_dropout"])


def some_measured(study: Study, count: int, seed: int = 0) -> list[Trial]:
    dice = random.Random(seed)
    arms = [a_random_arm(study, dice) for _ in range(count)]
    return [measured(index, arm, accuracy(arm)) for index, arm in enumerate(arms)]


def suggest(study: Study, trials: Sequence[Trial], count: int = 1) -> tuple[Suggestion, ...]:
    return AxDesigner().suggest(study, trials, count)


def arms(suggestions: Sequence[Suggestion]) -> list[Arm]:
    return [suggestion.arm for suggestion in suggestions]


# The same ledger, the same proposal.


def test_a_fresh_process_proposes_the_same_whatever_its_hash_seed() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_ax import *
print(repr(suggest(*a_ledger_of_everything())))
"""
    answers = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed, threads in (("1", "1"), ("2", "2"))
    ]
    assert answers == [repr(suggest(*a_ledger_of_everything()))] * 2


def a_ledger_of_everything() -> tuple[Study, list[Trial]]:
    """A study with constraints of both kinds, and trials in every state."""
    study = a_study(
        parameters=(
            LEARNING_RATE,
            Parameter(name="lora_rank", search_space=Categorical(values=(8, 64))),
            DROPOUT,
            DECAY,
        ),
        parameter_constraints=("lora_dropout + weight_decay <= 0.25",),
        outcome_constraints=("invalid_output_rate <= 0.2", "false_value_rate <= 0.3"),
    )
    dice = random.Random(3)
    points = [a_random_arm(study, dice) | {"weight_decay": dice.uniform(0, 0.05)} for _ in range(14)]
    trials = [
        measured(index, arm, accuracy(arm), invalid_output_rate=dice.random() / 2, false_value_rate=dice.random() / 2)
        for index, arm in enumerate(points[:10])
    ]
    trials[4] = measured(4, points[4], 0.0, diverged=True, invalid_output_rate=1.0)
    trials += [
        a_trial(10, points[10], TrialState.ABANDONED),
        a_trial(11, points[11], TrialState.FAILED),
        a_trial(12, points[12], TrialState.RUNNING),
        a_trial(13, points[13], TrialState.PENDING),
    ]
    return study, trials


def test_the_order_in_which_trials_are_given_does_not_matter() -> None:
    study, trials = a_ledger_of_everything()
    study = replace(study, parameter_constraints=(), outcome_constraints=())
    shuffled = random.Random(1).sample(trials, len(trials))
    assert suggest(study, shuffled) == suggest(study, trials)


def test_the_state_of_the_process_random_generators_does_not_matter() -> None:
    study = a_study()
    trials = some_measured(study, 8)
    first = suggest(study, trials)
    random.seed(99)
    ax.torch.manual_seed(99)
    assert suggest(study, trials) == first


def test_the_threads_of_torch_are_given_back() -> None:
    before = ax.torch.get_num_threads()
    ax.torch.set_num_threads(2)
    try:
        suggest(a_study(), [])
        assert ax.torch.get_num_threads() == 2
    finally:
        ax.torch.set_num_threads(before)


def test_another_seed_proposes_other_arms() -> None:
    assert suggest(a_study(seed=1), [], 3) != suggest(a_study(seed=2), [], 3)


@pytest.mark.parametrize("seed", [-1, 0, 2**31, 2**40], ids=str)
def test_any_whole_number_is_a_seed(seed: int) -> None:
    study = a_study(seed=seed)
    assert len(suggest(study, [], 2)) == len(suggest(study, some_measured(study, 6), 2)) == 2


# Points that are spread out.


@pytest.mark.parametrize(
    "constraints", [(), ("lora_dropout + 2 * weight_decay <= 0.15",)], ids=["anywhere", "beside a constraint"]
)
def test_arms_that_stand_rounded_in_the_ledger_are_not_proposed_again(constraints: tuple[str, ...]) -> None:
    study = a_study(parameters=(LEARNING_RATE, DROPOUT, DECAY), parameter_constraints=constraints)
    exact, rounded = list[Trial](), list[Trial]()
    for index in range(5):
        (suggestion,) = suggest(study, rounded)
        assert suggest(study, exact) == (suggestion,)
        node = {"generation_node": suggestion.generation_node}
        exact.append(a_trial(index, suggestion.arm, **node))
        coarse = {name: float(f"{value:.1e}") for name, value in suggestion.arm.items()}
        rounded.append(a_trial(index, coarse, **node))
    assert len({trial.arm["learning_rate"] for trial in rounded}) == 5


# A search that stagnates.


def test_a_search_that_stagnates_fills_a_gap_with_every_second_arm() -> None:
    study = a_study(num_trials=24)
    best = some_measured(study, 1)[0].arm
    trials = [measured(0, best, 0.9), *(replace(t, index=t.index + 1) for t in some_measured(study, 8, seed=1))]
    gap, near = suggest(study, trials, 2)
    assert gap.generation_node == "Explore_Gap" and near.generation_node in {"MBM", "Explore_Sobol"}
    tried = [place(study.parameters, trial.arm) for trial in trials]
    (other,) = arms(suggest(study, trials[:7], 1))

    def nearest(arm: Arm) -> float:
        here = [value for _, value in place(study.parameters, arm)]
        return min(math.dist(here, [value for _, value in there]) for there in tried)

    assert nearest(gap.arm) > nearest(other)
    # The best has risen a trial ago: the model goes on.
    risen = [*trials, measured(9, gap.arm, 0.95)]
    assert suggest(study, risen)[0].generation_node in {"MBM", "Explore_Sobol"}
    assert suggest(study, trials, 2) == (gap, near)


# A model that knows nothing.


def some_noise(study: Study, count: int, seed: int) -> list[Trial]:
    """Return trials whose values have nothing to do with their arms."""
    dice = random.Random(seed)
    return [measured(index, a_random_arm(study, dice), dice.gauss(0.6, 0.1)) for index in range(count)]


def test_where_values_are_noise_arms_are_spread_out_and_where_a_surface_is_smooth_the_model_chooses() -> None:
    nodes = {"noise": list[str](), "smooth": list[str]()}
    for seed in range(10):
        study = a_study(seed=seed)
        for name, trials in {"noise": some_noise(study, 14, seed), "smooth": some_measured(study, 14, seed)}.items():
            nodes[name].append(suggest(study, trials)[0].generation_node)
    # By chance alone one of twenty would be open.
    assert nodes["noise"].count("Explore_Sobol") >= 8
    assert nodes["smooth"].count("MBM") >= 9
    assert set(nodes["noise"] + nodes["smooth"]) == {"Explore_Sobol", "MBM"}


def test_arms_that_are_spread_out_go_on_where_the_first_ones_ended_whatever_the_model_chose_between() -> None:
    study = a_study(seed=3)
    dice = random.Random(0)
    trials: list[Trial] = []
    for index in range(20):
        (suggestion,) = suggest(study, trials)
        assert suggest(study, trials) == (suggestion,)
        # Smooth at first, so that the model chooses too, and then noise.
        value = accuracy(suggestion.arm) if index < 9 else dice.gauss(0.5, 0.3)
        trials.append(replace(measured(index, suggestion.arm, value), generation_node=suggestion.generation_node))
    nodes = [trial.generation_node for trial in trials]
    assert nodes[:5] == ["Sobol"] * 5
    assert {"MBM", "Explore_Sobol"} == set(nodes[5:])
    spread_out = [trial.arm for trial in trials if trial.generation_node != "MBM"]
    sequence = ax._build_sobol(ax._build_experiment(study, []), study.seed)
    assert spread_out == ax._draw(study, sequence, len(spread_out))


def test_the_model_does_not_propose_the_corners_of_a_wide_space() -> None:
    names = [f"p{number}" for number in range(8)]
    study = a_study(parameters=tuple(Parameter(name=name, search_space=LogUniform(min=1e-8, max=10)) for name in names))
    dice = random.Random(0)
    trials = []
    for index in range(20):
        arm = a_random_arm(study, dice)
        trials.append(measured(index, arm, -abs(math.log10(arm["p0"]) + 3), diverged=arm["p0"] > 1))
    (suggestion,) = suggest(study, trials)
    assert suggestion.generation_node == "MBM"
    at_bounds = [value for value in suggestion.arm.values() if not 1.1e-8 < value < 9]
    assert len(at_bounds) <= 1


# Parallel slots.


def test_asking_for_three_arms_is_asking_three_times() -> None:
    study = a_study()
    trials = some_measured(study, 8)
    at_once = suggest(study, trials, 3)
    one_by_one: list[Suggestion] = []
    for index in range(8, 11):
        (suggestion,) = suggest(study, trials)
        one_by_one.append(suggestion)
        trials = [*trials, a_trial(index, suggestion.arm)]
    assert list(at_once) == one_by_one


def test_a_running_trial_moves_the_next_proposal_away_from_it() -> None:
    study = a_study()
    trials = some_measured(study, 8)
    (alone,) = suggest(study, trials)
    (beside,) = suggest(study, [*trials, a_trial(8, alone.arm, TrialState.RUNNING)])
    assert alone.generation_node == beside.generation_node == "MBM"
    assert alone.arm != beside.arm


@pytest.mark.parametrize("parallel_trials", [1, 4, 8, 20])
def test_no_slot_stays_idle_while_nothing_is_measured(parallel_trials: int) -> None:
    study = a_study(parallel_trials=parallel_trials)
    suggestions = suggest(study, [], parallel_trials)
    assert len({tuple(arm.values()) for arm in arms(suggestions)}) == parallel_trials
    # One is measured, and its slot is filled again.
    trials = [a_trial(index, arm, TrialState.RUNNING) for index, arm in enumerate(arms(suggestions))]
    trials[0] = measured(0, trials[0].arm, 0.5)
    assert len(suggest(study, trials)) == 1


@pytest.mark.parametrize(("parallel_trials", "initial"), [(1, 5), (4, 5), (5, 6), (8, 9)])
def test_the_model_takes_over_after_the_initial_arms(parallel_trials: int, initial: int) -> None:
    study = a_study(parallel_trials=parallel_trials)
    assert suggest(study, some_measured(study, initial - 1))[0].generation_node == "Sobol"
    assert suggest(study, some_measured(study, initial))[0].generation_node in {"MBM", "Explore_Sobol"}


def test_baseline_and_starting_arms_count_and_teach_like_any_other() -> None:
    study = a_study()
    trials = some_measured(study, 8)
    given = [Origin.BASELINE, Origin.STARTING_ARM, Origin.STARTING_ARM]
    others = [
        Trial(**(vars(trial) | {"origin": origin})) for trial, origin in zip(trials, given, strict=False)
    ] + trials[3:]
    assert suggest(study, others) == suggest(study, trials)


# What was learnt.


def test_the_model_climbs_to_the_top_of_a_smooth_surface() -> None:
    study = a_study()
    trials: list[Trial] = []
    for index in range(20):
        (suggestion,) = suggest(study, trials)
        trials.append(measured(index, suggestion.arm, accuracy(suggestion.arm)))
    values = [trial.measurements[0].value for trial in trials]
    # The top is 0.8; random arms have a mean of 0.46.
    assert max(values[5:]) > 0.78 > max(values[:5])


def test_minimizing_a_value_is_maximizing_its_negative() -> None:
    study = a_study(objective=Objective(metric="validation_loss", direction=Direction.MINIMIZE))
    trials = some_measured(a_study(), 9)
    negative = [measured(trial.index, trial.arm, -trial.measurements[0].value) for trial in trials]
    down, up = arms(suggest(study, negative))[0], arms(suggest(a_study(), trials))[0]
    assert down["lora_rank"] == up["lora_rank"]
    assert math.log(down["learning_rate"]) == pytest.approx(math.log(up["learning_rate"]), abs=0.05)


def a_tempting_ledger(study: Study, seed: int) -> list[Trial]:
    """Eight healthy trials below a learning rate of 1e-3 that say: the higher, the better."""
    dice = random.Random(seed)
    points = [a_random_arm(study, dice) | {"learning_rate": 10 ** dice.uniform(-5, -3)} for _ in range(8)]
    return [measured(i, arm, 0.9 + math.log10(arm["learning_rate"]) / 10) for i, arm in enumerate(points)]


def five_dead(study: Study, seed: int, fate: str) -> list[Trial]:
    """Five trials above a learning rate of 1e-3 that diverged or could not run."""
    dice = random.Random(1000 + seed)
    points = [a_random_arm(study, dice) | {"learning_rate": 10 ** dice.uniform(-2.8, -2)} for _ in range(5)]
    if fate == "diverged":
        return [measured(8 + i, arm, 0.0, diverged=True) for i, arm in enumerate(points)]
    return [a_trial(8 + i, arm, TrialState.ABANDONED) for i, arm in enumerate(points)]


@pytest.mark.parametrize("fate", ["diverged", "abandoned"])
def test_after_five_dead_arms_proposals_in_their_region_are_rarer(fate: str) -> None:
    repetitions = 20
    inside = {"with": 0, "without": 0}
    for seed in range(repetitions):
        study = a_study(seed=seed)
        tempting = a_tempting_ledger(study, seed)
        for name, trials in {"without": tempting, "with": tempting + five_dead(study, seed, fate)}.items():
            (arm,) = arms(suggest(study, trials))
            inside[name] += arm["learning_rate"] > 10**-2.8
    table = [[inside[name], repetitions - inside[name]] for name in ("with", "without")]
    assert fisher_exact(table, alternative="less").pvalue < 0.01, inside


def test_a_trial_that_failed_may_be_suggested_again_and_an_abandoned_one_is_not() -> None:
    study = a_study()
    (first,) = suggest(study, [])
    assert suggest(study, [a_trial(0, first.arm, TrialState.FAILED)]) == (first,)
    assert suggest(study, [a_trial(0, first.arm, TrialState.ABANDONED)])[0].arm != first.arm


def test_a_trial_that_failed_at_full_length_keeps_its_first_measurement() -> None:
    study = a_study()
    trials = some_measured(study, 8)
    failed = Trial(**(vars(trials[2]) | {"state": TrialState.FAILED, "rung": 1}))
    assert suggest(study, [*trials[:2], failed, *trials[3:]]) == suggest(study, trials)


@pytest.mark.parametrize("state", [TrialState.PENDING, TrialState.RUNNING, TrialState.COMPLETED, TrialState.STOPPED])
def test_what_comes_after_the_first_rung_teaches_nothing(state: TrialState) -> None:
    study = a_study()
    trials = some_measured(study, 8)
    last = Measurement(
        rung=1,
        step=100,
        value=123.0,
        standard_error=None,
        metrics={},
        checkpoint="t003",
    )
    promoted = Trial(**(vars(trials[3]) | {"state": state, "rung": 1, "measurements": (*trials[3].measurements, last)}))
    assert suggest(study, [*trials[:3], promoted, *trials[4:]]) == suggest(study, trials)


def test_a_diverged_trial_among_equal_measurements_is_the_worst_that_ax_is_given_and_fits() -> None:
    study = a_study()
    dice = random.Random(0)
    points = [a_random_arm(study, dice) for _ in range(6)]
    trials = [measured(i, arm, 0.0, diverged=i == 5) for i, arm in enumerate(points)]
    experiment = ax._build_experiment(study, ax._entries(study, trials))
    means = list(experiment.lookup_data().df["mean"])
    assert means == [means[0]] * 5 + [means[5]]
    assert means[5] < means[0] - 1

    with ax._one_thread():
        model = ax._fit_model(study, experiment)
    fitted = model.transforms["Winsorize"].cutoffs["accuracy"]
    assert fitted[0] <= means[5]


def test_the_accuracy_of_an_attribute_may_be_constrained() -> None:
    study = a_study(outcome_constraints=("accuracy/price >= 0.5",))
    trials = [
        replace(
            trial, measurements=(replace(trial.measurements[0], metrics={"accuracy/price": 0.4 + trial.index / 10}),)
        )
        for trial in some_measured(study, 6)
    ]
    (constraint,) = ax._build_experiment(study, []).optimization_config.outcome_constraints
    assert (constraint.metric_names, constraint.bound) == (["accuracy/price"], 0.5)
    assert suggest(study, trials)[0].generation_node == "MBM"


# Where arms may lie.


def test_parameter_constraints_hold_in_every_proposal() -> None:
    study = a_study(
        parameters=(LEARNING_RATE, DROPOUT, DECAY), parameter_constraints=("lora_dropout + weight_decay <= 0.1",)
    )
    trials: list[Trial] = []
    for index in range(14):
        (suggestion,) = suggest(study, trials)
        arm = suggestion.arm
        assert arm["lora_dropout"] + arm["weight_decay"] <= 0.1 + 1e-7
        # The best of the box lies far outside.
        trials.append(measured(index, arm, arm["lora_dropout"] + 2 * arm["weight_decay"]))
    # The best that the constraint leaves: no dropout, all decay.
    assert max(trial.measurements[0].value for trial in trials) > 0.19


def test_outcome_constraints_keep_proposals_where_they_hold() -> None:
    rates = {}
    for name, constraints in {"free": (), "constrained": ("invalid_output_rate <= 0.2",)}.items():
        rates[name] = []
        for seed in range(5):
            study = a_study(seed=seed, outcome_constraints=constraints)
            dice = random.Random(seed)
            trials = []
            for index in range(10):
                arm = a_random_arm(study, dice)
                exponent = math.log10(arm["learning_rate"])
                # Better and better with the rate, but above 1e-4 less and less of it can be read.
                trials.append(
                    measured(index, arm, 0.9 + exponent / 10, invalid_output_rate=min(max(exponent + 4.2, 0.0), 1.0))
                )
            rates[name] += [arm["learning_rate"] for arm in arms(suggest(study, trials))]
    assert sum(rate > 10**-3.5 for rate in rates["free"]) >= 4
    assert sum(rate > 10**-3.5 for rate in rates["constrained"]) <= 1


@pytest.mark.parametrize(
    "values",
    [
        (4, 8, 16, 32, 64),
        (64, 4, 16),
        (0.5, 1, 2),
        (0.1, 0.2, 0.3, 0.7),
        (1e-5, 3e-5, 1e-4),
        ("low", "mid", "high"),
        (7,),
    ],
    ids=["geometric", "not sorted", "mixed", "decimal", "tiny", "words", "one"],
)
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_categorical_values_come_back_exactly_as_they_were_given(values: tuple[Any, ...], ordered: bool) -> None:
    choice = Parameter(name="choice", search_space=Categorical(values=values, ordered=ordered))
    study = a_study(parameters=(choice, DROPOUT))
    trials: list[Trial] = []
    seen = []
    for index in range(8):
        (suggestion,) = suggest(study, trials)
        seen.append(suggestion.arm["choice"])
        trials.append(measured(index, suggestion.arm, values.index(seen[-1]) + suggestion.arm["lora_dropout"]))
    assert {(type(value), value) for value in seen} <= {(type(value), value) for value in values}
    assert len(set(seen)) > 1 or len(values) == 1


GOOD = {"learning_rate": 1e-4, "lora_rank": 16, "lora_dropout": 0.1}


@pytest.mark.parametrize(
    ("arm", "sentence"),
    [
        (GOOD | {"learning_rate": 0.1}, "learning_rate must be between 1e-05 and 0.01, got 0.1"),
        (GOOD | {"lora_dropout": -0.01}, "lora_dropout must be between 0.0 and 0.2, got -0.01"),
        (GOOD | {"lora_dropout": math.nan}, "lora_dropout must be between 0.0 and 0.2, got nan"),
        (GOOD | {"lora_dropout": "0.1"}, "lora_dropout must be between 0.0 and 0.2, got '0.1'"),
        (GOOD | {"lora_rank": 5}, "lora_rank must be one of 4, 8, 16, 32, 64, got 5"),
        (GOOD | {"lora_rank": "16"}, "lora_rank must be one of 4, 8, 16, 32, 64, got '16'"),
        ({"learning_rate": 1e-4, "lora_rank": 16}, "lora_dropout must have a value"),
        (GOOD | {"alpha": 1}, "alpha must be one of learning_rate, lora_rank, lora_dropout"),
    ],
    ids=["too high", "too low", "not a number", "a string", "not a choice", "a choice as string", "missing", "unknown"],
)
@pytest.mark.parametrize("state", [TrialState.PENDING, TrialState.FAILED, TrialState.ABANDONED])
def test_a_point_outside_the_space_is_refused(arm: Arm, sentence: str, state: TrialState) -> None:
    with pytest.raises(DesignerError) as refusal:
        suggest(a_study(), [a_trial(0, GOOD), a_trial(1, arm, state)])
    assert str(refusal.value) == f"trial t001 is outside the search space: {sentence}"


def test_every_fault_of_a_point_is_named_at_once() -> None:
    with pytest.raises(DesignerError, match=r"learning_rate must.*; lora_rank must"):
        suggest(a_study(), [a_trial(0, GOOD | {"learning_rate": 1.0, "lora_rank": 1})])


def test_a_point_that_breaks_a_constraint_is_refused() -> None:
    study = a_study(parameters=(DROPOUT, DECAY), parameter_constraints=("lora_dropout + weight_decay <= 0.1",))
    with pytest.raises(DesignerError, match=r"must hold, got lora_dropout = 0\.1, weight_decay = 0\.05"):
        suggest(study, [a_trial(0, {"lora_dropout": 0.1, "weight_decay": 0.05})])


def test_rounding_at_a_bound_is_not_outside() -> None:
    study = a_study()
    trials = [measured(0, GOOD | {"learning_rate": 1e-2 * (1 + 1e-12)}, 0.5), *some_measured(study, 8)[1:]]
    assert suggest(study, trials)[0].arm["learning_rate"] <= 1e-2


@pytest.mark.parametrize(
    ("space", "constraints"),
    [
        (LogUniform(min=1e-10, max=1e-9), ()),
        (LogUniform(min=1e-6, max=1e-5), ()),
        (LogUniform(min=1.0, max=1.0000001), ()),
        (Uniform(min=1e-10, max=1e-9), ("{} + lora_dropout <= 0.1",)),
        (Uniform(min=-1e-7, max=1e-7), ("{} >= 0",)),
    ],
    ids=["tiny and log", "of full fine-tuning", "narrow and log", "tiny, constrained", "around zero, constrained"],
)
@pytest.mark.parametrize("name", ["learning_rate", "lambda", "beta", "pi"])
def test_narrow_ranges_and_names_that_sympy_knows_are_searched_like_any_other(
    name: str, space: Any, constraints: tuple[str, ...]
) -> None:
    study = a_study(
        parameters=(Parameter(name=name, search_space=space), DROPOUT),
        parameter_constraints=tuple(text.format(name) for text in constraints),
    )
    trials: list[Trial] = []
    for index in range(6):
        (suggestion,) = suggest(study, trials)
        value = suggestion.arm[name]
        assert space.min <= value <= space.max
        trials.append(measured(index, suggestion.arm, 0.5 + 0.1 * (value - space.min) / (space.max - space.min)))
    assert len({trial.arm[name] for trial in trials}) > 4
    # Of five arms a model seldom knows enough.
    assert suggestion.generation_node in {"MBM", "Explore_Sobol"}


def test_an_attribute_s_accuracy_may_be_constrained_or_the_objective() -> None:
    objective = Objective(metric="accuracy/name", direction=Direction.MAXIMIZE)
    study = a_study(objective=objective, outcome_constraints=("accuracy/price >= 0.1", "invalid_output_rate <= 0.5"))
    dice = random.Random(0)
    trials = [
        measured(i, arm, accuracy(arm), **{"accuracy/price": accuracy(arm) - 0.4, "invalid_output_rate": 0.1})
        for i, arm in enumerate(a_random_arm(study, dice) for _ in range(8))
    ]
    (suggestion,) = suggest(study, trials)
    assert suggestion.generation_node == "MBM"


def test_whatever_ax_raises_is_said_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("all attempts to fit the model have failed")

    monkeypatch.setattr(ax, "_build_experiment", fail)
    with pytest.raises(DesignerError, match="Ax failed with RuntimeError: all attempts to fit the model have failed"):
        suggest(a_study(), [])


@pytest.mark.parametrize("values", [(), ("all", "attention", "mlp"), tuple(range(1, 12))], ids=["none", "few", "many"])
def test_constraints_hold_beside_any_number_of_choices(values: tuple[Any, ...]) -> None:
    choice = (Parameter(name="choice", search_space=Categorical(values=values)),) if values else ()
    study = a_study(parameters=(DROPOUT, DECAY, *choice), parameter_constraints=("lora_dropout >= 2 * weight_decay",))
    dice = random.Random(0)
    trials = []
    for index in range(6):
        arm = a_random_arm(study, dice)
        arm = {**arm, "weight_decay": arm["lora_dropout"] * 0.4}
        trials.append(measured(index, arm, arm["weight_decay"] - arm["lora_dropout"] / 10))
    (suggestion,) = suggest(study, trials)
    assert suggestion.generation_node == "MBM"
    assert suggestion.arm["lora_dropout"] >= 2 * suggestion.arm["weight_decay"] - 1e-7


# Spaces that end.

SIX = a_study(
    parameters=(
        Parameter(name="rank", search_space=Categorical(values=(4, 8, 16), ordered=True)),
        Parameter(name="modules", search_space=Categorical(values=("all", "attention"))),
    )
)
SIX_ARMS = [{"rank": rank, "modules": modules} for rank, modules in itertools.product((4, 8, 16), ("all", "attention"))]


def test_a_finite_space_is_walked_without_repeating_an_arm() -> None:
    trials: list[Trial] = []
    for index in range(6):
        (suggestion,) = suggest(SIX, trials)
        trials.append(measured(index, suggestion.arm, suggestion.arm["rank"] / 100))
    assert sorted(map(str, (trial.arm for trial in trials))) == sorted(map(str, SIX_ARMS))
    with pytest.raises(DesignerError, match="every arm of the search space was tried"):
        suggest(SIX, trials)


def test_what_is_left_of_a_finite_space_may_be_fewer_than_asked_for() -> None:
    trials = [measured(index, arm, arm["rank"] / 100) for index, arm in enumerate(SIX_ARMS[:4])]
    assert sorted(map(str, arms(suggest(SIX, trials, 5)))) == sorted(map(str, SIX_ARMS[4:]))


def test_a_space_with_a_range_of_one_value_ends_too() -> None:
    fixed = Parameter(name="lora_dropout", search_space=Uniform(min=0.1, max=0.1))
    study = replace(SIX, parameters=(*SIX.parameters, fixed))
    trials: list[Trial] = []
    for index in range(6):
        (suggestion,) = suggest(study, trials)
        trials.append(measured(index, suggestion.arm, suggestion.arm["rank"] / 100))
    assert len({str(trial.arm) for trial in trials}) == 6
    assert suggest(study, [*trials[:5], a_trial(5, trials[5].arm, TrialState.RUNNING)]) == ()
    with pytest.raises(DesignerError, match="every arm of the search space was tried"):
        suggest(study, trials)


@pytest.mark.parametrize("count", [3, 6])
def test_an_exhausted_space_with_a_running_trial_is_a_wait(count: int) -> None:
    trials = [a_trial(index, arm, TrialState.RUNNING) for index, arm in enumerate(SIX_ARMS)]
    trials = [*trials[:5], measured(5, SIX_ARMS[5], 0.1)]
    assert suggest(SIX, trials, count) == ()


def test_the_only_arm_left_is_the_one_that_failed() -> None:
    trials = [measured(index, arm, arm["rank"] / 100) for index, arm in enumerate(SIX_ARMS)]
    trials[2] = a_trial(2, SIX_ARMS[2], TrialState.FAILED)
    assert arms(suggest(SIX, trials)) == [SIX_ARMS[2]]
    trials[2] = a_trial(2, SIX_ARMS[2], TrialState.ABANDONED)
    with pytest.raises(DesignerError, match="every arm of the search space was tried"):
        suggest(SIX, trials)


# Numbers.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_no_number_that_is_not_finite_reaches_ax(value: float) -> None:
    with pytest.raises(DesignerError, match=f"trial t001: accuracy must be finite, got {value}"):
        suggest(a_study(), [measured(0, GOOD, 0.5), measured(1, GOOD, value)])
    study = a_study(outcome_constraints=("invalid_output_rate <= 0.2",))
    with pytest.raises(DesignerError, match=f"trial t000: invalid_output_rate must be finite, got {value}"):
        suggest(study, [measured(0, GOOD, 0.5, invalid_output_rate=value)])


def test_a_constrained_metric_that_was_not_measured_is_named() -> None:
    study = a_study(outcome_constraints=("invalid_output_rate <= 0.2",))
    with pytest.raises(DesignerError, match="trial t000 must measure 'invalid_output_rate'"):
        suggest(study, [measured(0, GOOD, 0.5)])


def test_a_trial_that_should_be_measured_and_is_not_is_named() -> None:
    with pytest.raises(DesignerError, match="trial t000 is Paused, so it must be measured on the first rung"):
        suggest(a_study(), [a_trial(0, GOOD, TrialState.PAUSED)])


@pytest.mark.parametrize(
    "values",
    [[0.0] * 8, [0.0] * 7 + [1.0], [1e30, *range(7)], [1e-30 * i for i in range(8)], [-1e6 * i for i in range(8)]],
    ids=["all dead", "all dead but one", "one huge", "tiny", "large"],
)
def test_proposals_are_finite_and_in_the_space_whatever_was_measured(values: list[float]) -> None:
    study = a_study()
    points = [trial.arm for trial in some_measured(study, 8)]
    trials = [measured(index, arm, value) for index, (arm, value) in enumerate(zip(points, values, strict=True))]
    suggestions = suggest(study, trials, 2)
    assert len(suggestions) == 2
    for arm in arms(suggestions):
        assert 1e-5 <= arm["learning_rate"] <= 1e-2
        assert arm["lora_rank"] in {4, 8, 16, 32, 64}
        assert 0.0 <= arm["lora_dropout"] <= 0.2


def test_proposals_go_on_when_every_trial_was_abandoned() -> None:
    study = a_study()
    points = [trial.arm for trial in some_measured(study, 6)]
    dead = [a_trial(index, arm, TrialState.ABANDONED) for index, arm in enumerate(points)]
    (suggestion,) = suggest(study, dead)
    assert suggestion.arm not in points


def test_nothing_is_proposed_where_nothing_is_asked_for() -> None:
    assert suggest(a_study(), [], 0) == ()


# Earlier studies.


def an_earlier_study(value: Any = accuracy, parameters: Sequence[Parameter] = (), count: int = 20) -> EarlierStudy:
    """A study of random arms, which measured what a function says of them."""
    dice, study = random.Random(7), a_study(**({"parameters": tuple(parameters)} if parameters else {}))
    arms = [a_random_arm(study, dice) for _ in range(count)]
    trials = tuple(EarlierTrial(arm=arm, merit=value(arm)) for arm in arms)
    return EarlierStudy(best=max(trials, key=lambda trial: trial.merit).arm, trials=trials)


def test_the_best_arm_of_each_earlier_study_is_tried_once() -> None:
    one, other = an_earlier_study(), an_earlier_study(lambda arm: -accuracy(arm))
    study = a_study(earlier=(one, other))

    found = suggest(study, [], 3)

    assert arms(found[:2]) == [one.best, other.best]
    assert [s.generation_node for s in found] == [WARM_START_NODE, WARM_START_NODE, "Sobol"]


def test_an_earlier_arm_takes_the_nearest_values_that_this_search_space_allows() -> None:
    earlier = an_earlier_study(parameters=[LEARNING_RATE, RANK, DROPOUT])
    low = Parameter(name="learning_rate", search_space=LogUniform(min=1e-6, max=1e-5))
    ranks = Parameter(name="lora_rank", search_space=Categorical(values=(128, 256), ordered=True))
    study = a_study(parameters=(low, ranks, DECAY), earlier=(earlier,))

    (found,) = arms(suggest(study, []))

    assert found == {"learning_rate": 1e-5, "lora_rank": 128, "weight_decay": 0.05}


def test_a_parameter_that_an_earlier_study_did_not_search_has_the_baselines_value() -> None:
    earlier = an_earlier_study(parameters=[LEARNING_RATE, RANK, DROPOUT])
    baseline = {"learning_rate": 1e-4, "lora_rank": 8, "weight_decay": 0.01}
    study = a_study(parameters=(LEARNING_RATE, RANK, DECAY), baseline=baseline, earlier=(earlier,))

    (found,) = arms(suggest(study, [measured(0, baseline, 0.5)]))

    expected = {name: earlier.best[name] for name in ("learning_rate", "lora_rank")}
    assert found == {**expected, "weight_decay": 0.01}


def test_where_tasks_are_alike_the_model_knows_more_of_the_first_arms() -> None:
    """Six measured arms say little of three parameters; an earlier study's twenty say where the top is."""
    cold = a_study(parameters=(LEARNING_RATE, RANK, DROPOUT))
    warm = replace(cold, earlier=(an_earlier_study(),))
    found = dict[str, list[float]](cold=[], warm=[])
    for seed in range(6):
        # What was best before is tried already.
        best = warm.earlier[0].best
        trials = [*some_measured(cold, 6, seed), measured(6, best, accuracy(best))]
        for name, study in (("cold", cold), ("warm", warm)):
            found[name] += [accuracy(arm) for arm in arms(suggest(replace(study, seed=seed), trials))]

    assert sum(found["warm"]) > sum(found["cold"])


def test_an_earlier_study_that_knows_nothing_changes_no_proposal_of_the_model() -> None:
    dice = random.Random(1)
    noise = an_earlier_study(lambda arm: dice.random())
    trials = [*some_measured(a_study(), 10), measured(10, noise.best, accuracy(noise.best))]

    assert arms(suggest(a_study(earlier=(noise,)), trials)) == arms(suggest(a_study(), trials))


def test_arms_that_diverged_earlier_are_learnt_from() -> None:
    def diverges(arm: Arm) -> float:
        return -math.inf if float(arm["learning_rate"]) > 1e-3 else accuracy(arm)

    earlier = an_earlier_study(diverges)
    trials = [*some_measured(a_study(), 8), measured(8, earlier.best, accuracy(earlier.best))]

    (suggestion,) = suggest(a_study(earlier=(earlier,)), trials)

    assert suggestion.generation_node in ("MBM", EXPLORATION_NODE)


# What the model says, for people.


@pytest.mark.parametrize(("dimensions", "points"), [(1, 256), (10, 256), (11, 128), (20, 128)])
def test_the_covariances_of_many_parameters_have_room_in_the_operator_s_memory(dimensions: int, points: int) -> None:
    assert ax._count_sensitivity_points(dimensions) == points
    assert points * (dimensions + 2) <= ax.MOST_SENSITIVITY_POINTS


def read_model(study: Study, trials: Sequence[Trial], through: Trial) -> ModelReading:
    """Ask what the model says, which must come back the same through the bucket."""
    reading = AxDesigner().read_model(study, trials, through.arm)
    assert from_json(ModelReading, to_json(reading)) == reading
    return reading


def best_of(trials: Sequence[Trial]) -> Trial:
    return max(trials, key=lambda trial: trial.measurements[0].value)


def test_the_parameter_that_matters_comes_first_and_what_does_not_has_no_share() -> None:
    study = a_study(parameters=(DECAY, DROPOUT, RANK, LEARNING_RATE))
    dice = random.Random(3)
    arms = [a_random_arm(study, dice) for _ in range(24)]
    trials = [measured(i, arm, accuracy(arm)) for i, arm in enumerate(arms)]
    reading = read_model(study, trials, best_of(trials))
    assert (reading.measured, reading.knows) == (24, True)
    assert reading.p is not None and reading.p < 1e-4
    shares = {importance.parameter: importance for importance in reading.importances}
    assert [*shares][:2] == ["learning_rate", "lora_dropout"]
    assert shares["learning_rate"].total.value > 0.5 and shares["weight_decay"].total.value < 0.1
    for importance in reading.importances:
        for share in (importance.first, importance.total):
            assert 0 <= share.low <= share.value <= share.high <= 1


@pytest.mark.parametrize("direction", [Direction.MAXIMIZE, Direction.MINIMIZE])
def test_a_slice_lies_where_the_measured_function_does(direction: Direction) -> None:
    sign = 1 if direction is Direction.MAXIMIZE else -1
    study = a_study(objective=Objective(metric="validation_loss", direction=direction))
    covered = places = 0
    for seed in range(4):
        dice = random.Random(seed)
        arms = [a_random_arm(study, dice) for _ in range(24)]
        values = [sign * (accuracy(arm) + dice.gauss(0, 0.03)) for arm in arms]
        trials = [measured(i, arm, value) for i, (arm, value) in enumerate(zip(arms, values, strict=True))]
        through = max(trials, key=lambda trial: sign * trial.measurements[0].value)
        reading = read_model(study, trials, through)
        assert [found.parameter for found in reading.slices] == ["learning_rate", "lora_rank", "lora_dropout"]
        assert [point.setting for point in reading.slices[1].points] == [4, 8, 16, 32, 64]
        for found in reading.slices:
            for point in found.points:
                # Of what lies beyond all measurements nothing is claimed but that.
                truth = sign * accuracy({**through.arm, found.parameter: point.setting})
                truth = min(max(truth, min(values)), max(values))
                covered += point.low <= truth <= point.high
                places += 1
                assert min(values) <= point.low <= point.value <= point.high <= max(values)
    assert covered / places > 0.8


def test_a_slice_rises_with_the_rank_also_where_the_loss_ranks_too() -> None:
    study = a_study(promotion=Promotion(num_promoted=1, rank_by=RankBy.VALIDATION_LOSS))
    dice = random.Random(0)
    arms = [a_random_arm(study, dice) for _ in range(16)]
    # The loss follows the function, and what is measured only roughly.
    values = [accuracy(arm) + dice.gauss(0, 0.1) for arm in arms]
    trials = [
        measured(i, arm, value, validation_loss=-accuracy(arm))
        for i, (arm, value) in enumerate(zip(arms, values, strict=True))
    ]
    reading = read_model(study, trials, min(trials, key=lambda t: t.measurements[0].metrics["validation_loss"]))
    rates = next(found for found in reading.slices if found.parameter == "learning_rate")
    truth = [accuracy({**reading.through, "learning_rate": point.setting}) for point in rates.points]
    assert spearmanr(truth, [point.value for point in rates.points]).statistic > 0.8


def test_a_model_that_ranks_no_better_than_chance_says_so_and_nothing_else() -> None:
    study = a_study()
    dice = random.Random(5)
    arms = [a_random_arm(study, dice) for _ in range(12)]
    # The same arms in another order of their values: nothing that a model could know.
    values = [(0.1 * ((5 * i) % 12)) for i in range(12)]
    trials = [measured(i, arm, value) for i, (arm, value) in enumerate(zip(arms, values, strict=True))]
    reading = read_model(study, trials, trials[0])
    assert reading.p is not None and reading.p > 0.05
    assert (reading.knows, reading.importances, reading.slices) == (False, (), ())


def test_of_equal_measurements_nothing_is_known() -> None:
    trials = [
        measured(i, {"learning_rate": 10 ** (-5 + i / 3), "lora_rank": 8, "lora_dropout": 0}, 0) for i in range(6)
    ]
    reading = read_model(a_study(), trials, trials[0])
    assert (reading.tau, reading.p, reading.knows) == (None, None, False)


def test_diverged_abandoned_and_running_trials_and_an_earlier_study_do_not_hinder_a_reading() -> None:
    study = a_study(parameters=(LEARNING_RATE, RANK), parameter_constraints=())
    dice = random.Random(7)
    arms = [a_random_arm(study, dice) for _ in range(36)]
    value = {i: accuracy({**arm, "lora_dropout": 0}) for i, arm in enumerate(arms)}
    earlier = EarlierStudy(
        trials=tuple(EarlierTrial(arm=arm, merit=value[i]) for i, arm in enumerate(arms[:12])),
        best=arms[0],
    )
    trials = [measured(i, arm, value[12 + i]) for i, arm in enumerate(arms[12:])]
    trials[3] = measured(3, arms[15], 0.0, diverged=True)
    trials += [a_trial(24, arms[0], TrialState.ABANDONED), a_trial(25, arms[1], TrialState.RUNNING)]
    reading = read_model(replace(study, earlier=(earlier,)), trials, trials[0])
    assert reading.measured == 24
    assert {importance.parameter for importance in reading.importances} == {"learning_rate", "lora_rank"}


def test_a_slice_keeps_to_the_studys_constraints() -> None:
    study = a_study(parameters=(DROPOUT, DECAY), parameter_constraints=("lora_dropout + weight_decay <= 0.2",))
    dice = random.Random(8)
    arms = [arm for _ in range(40) if sum((arm := a_random_arm(study, dice)).values()) <= 0.2][:16]
    trials = [measured(i, arm, -float(arm["lora_dropout"])) for i, arm in enumerate(arms)]
    reading = read_model(study, trials, trials[0])
    dropout = reading.slices[0]
    assert max(point.setting for point in dropout.points) <= 0.2 - arms[0]["weight_decay"] + 1e-6
