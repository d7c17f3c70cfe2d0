"""Who continues to full length, who is audited, and who wins."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.ledgers import a_measurement, a_study, a_trial, continued, minimizing, of_three_rungs, paused, stopped
from study_operator.ledger.ranking import choose, choose_replacements, choose_winner, draw, rank
from study_operator.ledger.trial import Continuation, Trial, TrialState
from study_operator.spec.study import OutcomeConstraint, Promotion, RankBy, Study

TRIALS = [paused(0, 0.9), *(paused(i, i / 10) for i in range(1, 7))]


def a_wide_study(promoted: int = 2, audited: int = 0, **changes: object) -> Study:
    """Return a study that promotes a few of seven."""
    return a_study(promotion=Promotion(num_promoted=promoted, num_audited=audited), num_trials=7, **changes)


def chosen(study: Study, trials: list[Trial]) -> dict[int, str]:
    """Return who continues, and why."""
    return {c.index: str(c.continuation) for c in choose(study, trials, 0)}


def replacing(study: Study, trials: list[Trial]) -> dict[int, str]:
    """Return who continues in the place of others, and why."""
    return {c.index: str(c.continuation) for c in choose_replacements(study, trials, 0)}


def apply(study: Study, trials: list[Trial]) -> list[Trial]:
    """Return the trials after the choices were made."""
    choices = {c.index: c for c in choose(study, trials, 0)}
    after = []
    for trial in trials:
        choice = choices.get(trial.index)
        if choice is not None:
            after.append(continued(trial, None, choice.continuation, choice.inclusion_probability))
        elif trial.state is TrialState.PAUSED:
            after.append(replace(trial, state=TrialState.STOPPED))
        else:
            after.append(trial)
    return after


def test_the_best_continue_and_the_baseline_takes_no_slot() -> None:
    assert chosen(a_wide_study(), TRIALS) == {0: "Baseline", 6: "Promoted", 5: "Promoted"}


def test_a_lower_loss_is_better() -> None:
    assert chosen(minimizing(a_wide_study()), TRIALS) == {0: "Baseline", 1: "Promoted", 2: "Promoted"}


def test_the_baseline_continues_although_it_is_the_worst_and_breaks_a_constraint() -> None:
    worst = paused(0, 0.0, metrics={"accuracy": 0.0, "invalid_output_rate": 0.9})
    study = a_wide_study(
        outcome_constraints=(OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.2),)
    )
    assert chosen(study, [worst, *TRIALS[1:]])[0] == "Baseline"


def test_a_trial_that_breaks_a_constraint_is_not_promoted() -> None:
    study = a_wide_study(
        outcome_constraints=(OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.2),)
    )
    best = paused(6, 0.6, metrics={"accuracy": 0.6, "invalid_output_rate": 0.21})
    assert chosen(study, [*TRIALS[:6], best]) == {0: "Baseline", 5: "Promoted", 4: "Promoted"}


def test_a_diverged_trial_never_continues() -> None:
    diverged = [paused(i, 0.0, diverged=True) for i in range(3)]
    assert chosen(a_wide_study(audited=2), diverged) == {}


def test_among_equal_values_the_lower_index_ranks_first() -> None:
    equals = [paused(i, 0.5) for i in range(1, 5)]
    assert [t.index for t in rank(a_study(), reversed(equals), 0)] == [1, 2, 3, 4]
    assert chosen(a_wide_study(), equals) == {1: "Promoted", 2: "Promoted"}


def test_among_equal_values_the_lower_loss_ranks_before_the_elder() -> None:
    losses = {1: 2.0, 2: 1.5, 3: 1.5}
    trials = [paused(i, 0.0, metrics={"validation_loss": loss}) for i, loss in losses.items()]
    of_another_trainer = paused(0, 0.0, metrics={})
    better = paused(4, 0.1, metrics={"validation_loss": 9.0})
    ranked = rank(a_wide_study(), [of_another_trainer, *trials, better], 0)
    assert [trial.index for trial in ranked] == [4, 2, 3, 1, 0]


def test_audited_trials_are_drawn_from_the_rest_with_their_inclusion_probability() -> None:
    choices = [c for c in choose(a_wide_study(audited=3), TRIALS, 0) if c.continuation is Continuation.AUDITED]
    assert len(choices) == 3
    assert {c.index for c in choices} <= {1, 2, 3, 4}
    assert {c.inclusion_probability for c in choices} == {3 / 4}


def test_no_more_trials_are_audited_than_remain() -> None:
    choices = choose(a_wide_study(promoted=5, audited=3), TRIALS, 0)
    audited = [c for c in choices if c.continuation is Continuation.AUDITED]
    assert [c.inclusion_probability for c in audited] == [1.0]


def test_over_many_seeds_each_remaining_trial_is_audited_equally_often() -> None:
    counts = Counter(index for seed in range(3000) for index in draw([1, 2, 3, 4], 2, seed))
    assert all(abs(counts[index] - 1500) < 120 for index in (1, 2, 3, 4))


def test_the_next_best_trial_replaces_a_promoted_one_that_failed_or_diverged() -> None:
    study = a_wide_study()
    trials = apply(study, TRIALS)
    failed = replace(trials[6], state=TrialState.FAILED)
    assert replacing(study, [*trials[:6], failed]) == {4: "Promoted"}
    late = replace(
        trials[6],
        state=TrialState.COMPLETED,
        measurements=(*trials[6].measurements, a_measurement(1, 0.0, diverged=True)),
    )
    assert replacing(study, [*trials[:6], late]) == {4: "Promoted"}


def test_an_audited_trial_is_not_promoted_and_no_further_trial_is_audited() -> None:
    study = a_wide_study(audited=3)
    trials = apply(study, TRIALS)
    after = [replace(t, state=TrialState.FAILED) if t.index in (5, 6) else t for t in trials]
    unaudited = [t.index for t in trials if t.continuation is None]
    assert replacing(study, after) == dict.fromkeys(unaudited, "Promoted")


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(1, 4), st.integers(0, 4), st.integers(0, 50))
def test_choosing_again_changes_nothing(values: list[int], promoted: int, audited: int, seed: int) -> None:
    study = a_wide_study(promoted, audited, seed=seed)
    trials = [paused(i, value / 5, diverged=value == 0) for i, value in enumerate(values)]
    assert choose(study, trials, 0) == choose(study, list(reversed(trials)), 0)
    after = apply(study, trials)
    assert [*choose(study, after, 0), *choose_replacements(study, after, 0)] == []


def test_the_winner_is_the_best_at_full_length_including_baseline_and_audited_trials() -> None:
    baseline = continued(paused(0, 0.1), 0.7, Continuation.BASELINE)
    audited = continued(paused(1, 0.2), 0.8, Continuation.AUDITED, 0.5)
    promoted = continued(paused(2, 0.9), 0.6)

    def winner(*trials: Trial) -> int | None:
        best = choose_winner(a_study(), trials)
        return best.index if best else None

    assert winner(baseline, audited, promoted) == 1
    assert winner(baseline, promoted) == 0
    assert winner(stopped(3, 1.0), a_trial(4)) is None


def test_the_winner_keeps_the_constraints_if_any_trial_does() -> None:
    study = a_study(outcome_constraints=(OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.2),))
    noisy = a_measurement(1, 0.9, metrics={"accuracy": 0.9, "invalid_output_rate": 0.5})
    breaking = replace(continued(paused(1, 0.5), 0.9), measurements=(a_measurement(0, 0.5), noisy))
    keeping = continued(paused(2, 0.4), 0.6)
    assert choose_winner(study, [breaking, keeping]) is keeping
    assert choose_winner(study, [breaking]) is breaking


def test_drawing_as_many_trials_as_there_are_returns_all() -> None:
    assert draw([5, 3, 1], 3, seed=7) == [1, 3, 5]


# More than one early rung.


def on_the_second_rung(index: int, value: float, how: Continuation = Continuation.PROMOTED, **changes: object) -> Trial:
    """Return a trial that was measured at 20 % and at 50 %."""
    measurement = a_measurement(1, value, step=50, diverged=bool(changes.pop("diverged", False)))
    trial = continued(paused(index, index / 10), None, how)
    trial = replace(trial, state=TrialState.PAUSED, measurements=(*trial.measurements, measurement))
    return replace(trial, **changes)


def test_the_share_of_a_rung_is_promoted_and_never_fewer_than_later_rungs_need() -> None:
    promoted = [t.index for t in TRIALS[1:]]
    for percent, promotion, count in (
        (50, {}, 3),
        (51, {}, 4),
        (1, {}, 1),
        (1, {"num_promoted": 2, "num_audited": 1}, 3),
        (100, {}, 6),
    ):
        study = of_three_rungs(promoted_percents=(percent,), **promotion)
        ways = chosen(study, TRIALS)
        assert [i for i, way in ways.items() if way == "Promoted"] == list(reversed(promoted))[:count]


def test_a_later_rung_ranks_by_its_own_measurements_and_keeps_who_was_audited_before() -> None:
    study = of_three_rungs(num_audited=1)
    drawn = on_the_second_rung(1, 0.99, Continuation.AUDITED, inclusion_probability=0.25)
    trials = [
        on_the_second_rung(0, 0.1, Continuation.BASELINE),
        drawn,
        stopped(2, 0.9),
        on_the_second_rung(3, 0.3),
        on_the_second_rung(4, 0.8),
        on_the_second_rung(5, 0.6),
        on_the_second_rung(6, 0.5, diverged=True),
    ]
    choices = {c.index: (str(c.continuation), c.inclusion_probability) for c in choose(study, trials, 1)}
    audited = {3, 5} & choices.keys()
    assert len(audited) == 1
    assert choices == {0: ("Baseline", 1.0), 1: ("Audited", 0.25), 4: ("Promoted", 1.0)} | {
        audited.pop(): ("Audited", 0.5)
    }


def test_who_left_no_model_on_the_next_rung_is_replaced_from_the_one_before() -> None:
    study = of_three_rungs(promoted_percents=(50,))
    trials = [on_the_second_rung(i, 0.5) for i in (4, 5, 6)] + [stopped(i, i / 10) for i in (1, 2, 3)]
    lost = replace(trials[0], state=TrialState.FAILED)
    assert [c.index for c in choose_replacements(study, trials, 0)] == []
    assert [c.index for c in choose_replacements(study, [lost, *trials[1:]], 0)] == [3]
    assert [c.index for c in choose_replacements(study, [on_the_second_rung(4, 0, diverged=True), *trials[1:]], 0)] == [
        3
    ]


def test_who_breaks_a_constraint_on_the_next_early_rung_is_replaced_too() -> None:
    constraint = OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.2)
    study = of_three_rungs(a_study(outcome_constraints=(constraint,)), promoted_percents=(50,))
    trials = [on_the_second_rung(i, 0.5) for i in (4, 5, 6)] + [stopped(i, i / 10) for i in (1, 2, 3)]
    assert choose_replacements(study, trials, 0) == []
    first, second = trials[0].measurements
    breaking = replace(trials[0], measurements=(first, replace(second, metrics={"invalid_output_rate": 0.5})))
    assert [c.index for c in choose_replacements(study, [breaking, *trials[1:]], 0)] == [3]


def test_each_early_rung_draws_its_own_audits() -> None:
    drawn = [(draw(range(20), 3, "7"), draw(range(20), 3, f"7/{rung}")) for rung in (1, 2)]
    assert len({tuple(indexes) for pair in drawn for indexes in pair}) == 3
    assert draw(range(20), 3, 7) == draw(range(20), 3, "7")


# What ranks on an early rung.


def with_loss(index: int, accuracy: float, loss: float, **changes: object) -> Trial:
    """Return a trial that was measured once, with a loss of its answers."""
    return paused(index, accuracy, metrics={"validation_loss": loss, "invalid_output_rate": 0.1}, **changes)


BY_LOSS = Promotion(num_promoted=1, rank_by=RankBy.VALIDATION_LOSS)
BY_BOTH = Promotion(num_promoted=1, rank_by=RankBy.OBJECTIVE_AND_LOSS)


def test_early_rungs_may_be_ranked_by_the_answers_loss_and_full_length_never_is() -> None:
    trials = [with_loss(1, 0.5, 1.2), with_loss(2, 0.6, 1.5), with_loss(3, 0.1, 0.3, diverged=True)]
    study = a_study(promotion=BY_LOSS)
    assert chosen(a_study(), trials) == {2: "Promoted"}
    assert chosen(study, trials) == {1: "Promoted"}
    assert [t.index for t in rank(study, trials, 0)] == [1, 2, 3]
    finals = [continued(with_loss(1, 0.5, 1.2), 0.7), continued(with_loss(2, 0.6, 1.5), 0.8)]
    winner = choose_winner(study, finals)
    assert winner is not None and winner.index == 2


@pytest.mark.parametrize("promotion", [BY_LOSS, BY_BOTH], ids=["by the loss", "by both"])
def test_a_measurement_that_was_settled_without_a_loss_ranks_behind_all_that_have_one(promotion: Promotion) -> None:
    trials = [paused(1, 0.9), with_loss(2, 0.1, 5.0)]
    assert [t.index for t in rank(a_study(promotion=promotion), trials, 0)] == [2, 1]


def test_ranked_by_both_ten_points_make_up_for_a_nat() -> None:
    study = a_study(promotion=BY_BOTH)
    trials = [with_loss(1, 0.50, 1.0), with_loss(2, 0.61, 2.0), with_loss(3, 0.59, 2.0)]
    assert [t.index for t in rank(study, trials, 0)] == [2, 1, 3]
    finals = [continued(trial, value) for trial, value in zip(trials, (0.7, 0.8, 0.9), strict=True)]
    winner = choose_winner(study, finals)
    assert winner is not None and winner.index == 3
    # A loss that is the objective counts once.
    assert [t.index for t in rank(minimizing(study), [paused(1, 0.5), paused(2, 0.4)], 0)] == [2, 1]
