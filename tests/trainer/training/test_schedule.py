"""Laws of the learning rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trial_trainer.training.schedule import learning_rate

totals = st.integers(1, 5000)
percents = st.floats(0, 100)


def rates(total, percent, peak=1.0):
    return [learning_rate(step, peak=peak, total_steps=total, warmup_percent=percent) for step in range(total)]


@given(total=totals, percent=percents)
def test_it_rises_then_falls_and_never_leaves_zero_to_peak(total, percent):
    found = rates(total, percent)
    top = found.index(max(found))

    assert all(0 < rate <= 1 for rate in found)
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)


@given(total=totals, percent=percents)
def test_the_peak_is_reached(total, percent):
    assert max(rates(total, percent)) == 1


@given(total=totals, percent=percents, step=st.integers(0, 4999), peak=st.floats(1e-8, 1))
def test_it_scales_with_the_peak(total, percent, step, peak):
    step %= total
    one = learning_rate(step, peak=1.0, total_steps=total, warmup_percent=percent)

    assert learning_rate(step, peak=peak, total_steps=total, warmup_percent=percent) == pytest.approx(one * peak)


@given(total=st.integers(10, 5000), percent=st.integers(0, 50))
def test_warming_up_takes_the_asked_share_and_is_a_straight_line(total, percent):
    steps = max(1, round(total * percent / 100))

    assert rates(total, percent)[:steps] == pytest.approx([(step + 1) / steps for step in range(steps)])


def test_without_warm_up_the_first_step_is_the_peak():
    assert rates(100, 0)[0] == 1


def test_half_way_down_it_is_half_the_peak():
    assert learning_rate(55, peak=2e-4, total_steps=100, warmup_percent=10) == pytest.approx(1e-4)


def test_the_last_step_still_moves_but_hardly():
    assert 0 < rates(1000, 10)[-1] < 1e-5
