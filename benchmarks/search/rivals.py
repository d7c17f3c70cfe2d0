"""What the operator is compared with, each deciding what a free slot runs next.

Random arms are the same for every rival that draws them by the same seed, and for `product.RandomDesigner`.
"""

from __future__ import annotations

import warnings
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from search.clock import Order
from search.product import draw_arm
from search.recorded import RecordedArms
from study_operator.ledger.merit import LOSS
from study_operator.ledger.trial import Measurement, Origin, Trial, TrialState
from study_operator.optimizer.designer import Designer
from study_operator.optimizer.gaps import find_value
from study_operator.reconcile.settle import give_worst_values
from study_operator.spec.metrics import WORST_VALUES, Direction
from study_operator.spec.study import Arm, Categorical, LogUniform, Study, Uniform

if TYPE_CHECKING:
    import optuna

Floats = NDArray[np.float64]

REDUCTION = 3
"""Of arms from a rung to the next; the usual one."""

RUNGS = (1 / 27, 1 / 9, 1 / 3, 1.0)
"""Of the full length: where successive halving compares arms."""

REPORTS = tuple(percent / 100 for percent in range(4, 101, 4))
"""Of the full length: where a pruner is asked."""


class FullLength:
    """Every arm of a designer to full length, asynchronously: no early stopping at all."""

    def __init__(self, table: RecordedArms, study: Study, designer: Designer) -> None:
        self._table, self._study, self._designer = table, study, designer
        self._trials: tuple[Trial, ...] = ()
        self._rows: list[int] = []

    def next(self) -> Order | None:
        """Return the next arm, up to the study's number of trials."""
        if len(self._trials) >= self._study.num_trials:
            return None
        suggestions = self._designer.suggest(self._study, self._trials, 1)
        if not suggestions:
            return None
        arm, index = suggestions[0].arm, len(self._trials)
        trial = Trial(index=index, arm=arm, origin=Origin.SUGGESTED, state=TrialState.RUNNING, total_steps=100)
        self._trials = (*self._trials, trial)
        self._rows.append(self._table.nearest(arm, self._rows))
        return Order(index=index, row=self._rows[-1], share=1.0)

    def take(self, order: Order, value: float | None) -> None:
        """Give the designer what an arm came to, where the operator gives it the first rung."""
        loss = self._table.runs[order.row].find_loss(order.share)
        measurement = Measurement(
            rung=0,
            step=100,
            value=WORST_VALUES[self._study.objective.metric] if value is None else value,
            standard_error=None,
            metrics={} if loss is None else {LOSS: loss},
            checkpoint="" if value is None else "checkpoint",
            diverged=value is None,
        )
        trials = list(self._trials)
        trials[order.index] = replace(trials[order.index], state=TrialState.PAUSED, measurements=(measurement,))
        self._trials = give_worst_values(self._study, tuple(trials))


class PromotingAsha:
    """Asynchronous successive halving as published (Li et al., 2020, arXiv 1810.05934, algorithm 2), on random arms.

    A free slot promotes the best arm that is in the top third of its rung and was not promoted yet, the highest rung
    first; where there is none, a new arm begins. We break ties by age.
    """

    def __init__(self, table: RecordedArms, seed: int) -> None:
        self._table, self._seed = table, seed
        self._rows: list[int] = []
        self._merits: list[dict[int, float]] = [{} for _ in RUNGS]
        """What each arm measured on each rung; the higher, the better."""
        self._promoted: list[set[int]] = [set() for _ in RUNGS]

    def next(self) -> Order | None:
        """Return a promotion, or else a new arm."""
        for rung in reversed(range(len(RUNGS) - 1)):
            merits = self._merits[rung]
            top = sorted(merits, key=lambda index: (-merits[index], index))[: len(merits) // REDUCTION]
            for index in top:
                if index not in self._promoted[rung] and merits[index] > float("-inf"):
                    self._promoted[rung].add(index)
                    return Order(index=index, row=self._rows[index], share=RUNGS[rung + 1])
        arm = draw_arm(self._table.parameters, self._seed, len(self._rows))
        self._rows.append(self._table.nearest(arm, self._rows))
        return Order(index=len(self._rows) - 1, row=self._rows[-1], share=RUNGS[0])

    def take(self, order: Order, value: float | None) -> None:
        """Enter a measurement into its rung; a diverged arm is the worst."""
        merit = float("-inf") if value is None else self._table.objective.merit(value)
        self._merits[RUNGS.index(order.share)][order.index] = merit


class StoppingAsha:
    """Asynchronous successive halving that stops arms instead of pausing them, as Ray and Syne Tune do.

    Random arms. At each rung one goes on in its slot while it is in the top third of those that came there before it,
    itself among them; of the first two, which cannot be compared in thirds, each goes on if it is the best.
    """

    def __init__(self, table: RecordedArms, seed: int) -> None:
        self._table, self._seed = table, seed
        self._rows: list[int] = []
        self._merits: list[list[float]] = [[] for _ in RUNGS]
        self._going_on: deque[Order] = deque()

    def next(self) -> Order | None:
        """Return what goes on, or else a new arm."""
        if self._going_on:
            return self._going_on.popleft()
        arm = draw_arm(self._table.parameters, self._seed, len(self._rows))
        self._rows.append(self._table.nearest(arm, self._rows))
        return Order(index=len(self._rows) - 1, row=self._rows[-1], share=RUNGS[0])

    def take(self, order: Order, value: float | None) -> None:
        """Decide whether the arm goes on."""
        rung = RUNGS.index(order.share)
        if value is None or rung == len(RUNGS) - 1:
            return
        merit = self._table.objective.merit(value)
        self._merits[rung].append(merit)
        better = sum(other > merit for other in self._merits[rung])
        if better < max(1, len(self._merits[rung]) // REDUCTION):
            self._going_on.append(replace(order, share=RUNGS[rung + 1]))


@dataclass(kw_only=True)
class _Bracket:
    """One successive halving of BOHB's."""

    first: int
    """Rung at which its arms begin."""
    sizes: list[int]
    """Arms on each rung."""
    rung: int = 0
    """Counted from the first."""
    begun: int = 0
    waiting: deque[int] = field(default_factory=deque)
    """Arms that were promoted to the rung and do not run yet."""
    merits: dict[int, float] = field(default_factory=dict)
    """By arm, on the rung."""


class Bohb:
    """BOHB as published (Falkner et al., 2018, arXiv 1807.01774), with the constants of its authors' HpBandSter.

    Hyperband's brackets, whose arms are drawn by two densities, of the good arms and of the others, on the highest rung
    that has enough of both; a third of them, and the first, at random. A free slot takes what the eldest bracket has to
    run; where all wait for what runs, the next one begins. HpBandSter does not know the ConfigSpace of today.
    """

    good_percent, random_part, num_candidates = 15, 1 / 3, 64
    widening, least_width = 3.0, 1e-3

    def __init__(self, table: RecordedArms, seed: int) -> None:
        self._table, self._chance = table, np.random.default_rng(seed)
        self._points: list[Floats] = []
        """Of all arms, in the unit cube."""
        self._rows: list[int] = []
        self._brackets: list[_Bracket] = []
        self._bracket_of: list[_Bracket] = []
        self._merits: list[dict[int, float]] = [{} for _ in RUNGS]

    def next(self) -> Order | None:
        """Return a promotion, or else a new arm, of the eldest bracket that has one."""
        for bracket in self._brackets:
            if bracket.waiting:
                index = bracket.waiting.popleft()
                return Order(index=index, row=self._rows[index], share=RUNGS[bracket.first + bracket.rung])
            if bracket.begun < bracket.sizes[0]:
                return self._begin_arm(bracket)
        # As in Hyperband, brackets begin at one rung after the other, the shortest first.
        rungs = len(RUNGS) - len(self._brackets) % len(RUNGS)
        most = len(RUNGS) // rungs * REDUCTION ** (rungs - 1)
        sizes = [max(most // REDUCTION**rung, 1) for rung in range(rungs)]
        self._brackets.append(_Bracket(first=len(RUNGS) - rungs, sizes=sizes))
        return self._begin_arm(self._brackets[-1])

    def take(self, order: Order, value: float | None) -> None:
        """Enter a measurement; once a rung is full, its best third is promoted. A diverged arm is never."""
        bracket = self._bracket_of[order.index]
        merit = float("-inf") if value is None else self._table.objective.merit(value)
        bracket.merits[order.index] = self._merits[bracket.first + bracket.rung][order.index] = merit
        is_last = bracket.rung + 1 == len(bracket.sizes)
        if is_last or len(bracket.merits) < bracket.sizes[bracket.rung]:
            return
        bracket.rung += 1
        ranked = sorted(bracket.merits, key=lambda index: (-bracket.merits[index], index))
        bracket.waiting.extend(i for i in ranked[: bracket.sizes[bracket.rung]] if bracket.merits[i] > float("-inf"))
        bracket.sizes[bracket.rung], bracket.merits = len(bracket.waiting), {}

    def _begin_arm(self, bracket: _Bracket) -> Order:
        bracket.begun += 1
        point = self._draw_point()
        row = self._table.nearest(_find_arm(self._table, point), self._rows)
        self._points.append(self._table.points[row] if self._table.gives_each_once else point)
        self._rows.append(row)
        self._bracket_of.append(bracket)
        return Order(index=len(self._rows) - 1, row=self._rows[-1], share=RUNGS[bracket.first])

    def _draw_point(self) -> Floats:
        dimensions = len(self._table.parameters)
        halves = self._split_measured()
        if halves is None or self._chance.random() < self.random_part:
            return self._chance.random(dimensions)
        good, bad = halves
        widths = self.widening * self._find_widths(good)
        centres = good[self._chance.integers(len(good), size=self.num_candidates)]
        # A normal distribution that is cut off at the cube's sides.
        low, high = ndtr(-centres / widths), ndtr((1 - centres) / widths)
        drawn = centres + widths * ndtri(low + (high - low) * self._chance.random(centres.shape))
        candidates = np.clip(drawn, 0, 1)
        ratios = np.maximum(self._find_density(bad, candidates), 1e-32)
        ratios /= np.maximum(self._find_density(good, candidates), 1e-32)
        return np.asarray(candidates[int(ratios.argmin())])

    def _split_measured(self) -> tuple[Floats, Floats] | None:
        """Return the good points and the others of the highest rung with enough of both; None where there is none."""
        least = len(self._table.parameters) + 1
        for merits in reversed(self._merits):
            ranked = sorted(merits, key=lambda index: (-merits[index], index))
            count = max(least, len(ranked) * self.good_percent // 100)
            if len(ranked) >= count + least:
                points = np.array([self._points[index] for index in ranked])
                return points[:count], points[count:]
        return None

    def _find_widths(self, points: Floats) -> Floats:
        """Return the kernel's width in each dimension, by the normal reference rule."""
        count, dimensions = points.shape
        return np.maximum(1.06 * points.std(axis=0) * count ** (-1 / (4 + dimensions)), self.least_width)

    def _find_density(self, points: Floats, at: Floats) -> Floats:
        widths = self._find_widths(points)
        squares = (((at[:, None] - points) / widths) ** 2).sum(axis=2)
        return np.asarray(np.exp(-squares / 2).mean(axis=1) / widths.prod())


class Optuna:
    """Optuna's TPE with one of its pruners, asked and given every measurement on the simulated clock.

    It takes measurements for the arms that it has proposed alone, and cannot be told of the one that stands for one.
    """

    def __init__(self, table: RecordedArms, seed: int, pruner: optuna.pruners.BasePruner) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            # Running trials count as bad ones while others are proposed: an option that is called experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        is_larger_better = table.objective.direction is Direction.MAXIMIZE
        self._table = table
        self._pruned = optuna.trial.TrialState.PRUNED
        self._study = optuna.create_study(
            sampler=sampler, pruner=pruner, direction="maximize" if is_larger_better else "minimize"
        )
        self._trials: list[optuna.Trial] = []
        self._rows: list[int] = []
        self._going_on: deque[Order] = deque()

    def next(self) -> Order | None:
        """Return what goes on, or else a new arm."""
        if self._going_on:
            return self._going_on.popleft()
        trial = self._study.ask()
        arm = _suggest_arm(self._table, trial)
        self._trials.append(trial)
        self._rows.append(self._table.nearest(arm, self._rows))
        return Order(index=len(self._trials) - 1, row=self._rows[-1], share=REPORTS[0])

    def take(self, order: Order, value: float | None) -> None:
        """Report; a diverged arm is pruned."""
        trial = self._trials[order.index]
        if value is None:
            self._study.tell(trial, state=self._pruned)
            return
        trial.report(value, step=round(100 * order.share))
        if order.share == REPORTS[-1]:
            self._study.tell(trial, value)
        elif trial.should_prune():
            self._study.tell(trial, state=self._pruned)
        else:
            self._going_on.append(replace(order, share=REPORTS[REPORTS.index(order.share) + 1]))


def hyperband() -> optuna.pruners.BasePruner:
    """Return Optuna's Hyperband, from 4 % of the full length on."""
    import optuna

    return optuna.pruners.HyperbandPruner(min_resource=4, max_resource=100, reduction_factor=REDUCTION)


def successive_halving() -> optuna.pruners.BasePruner:
    """Return Optuna's successive halving, from 4 % of the full length on."""
    import optuna

    return optuna.pruners.SuccessiveHalvingPruner(min_resource=4, reduction_factor=REDUCTION)


def _find_arm(table: RecordedArms, point: Floats) -> Arm:
    """Return the arm at a point of the unit cube."""
    return {p.name: find_value(p, share) for p, share in zip(table.parameters, point.tolist(), strict=True)}


def _suggest_arm(table: RecordedArms, trial: optuna.Trial) -> Arm:
    arm: dict[str, Any] = {}
    for parameter in table.parameters:
        match parameter.search_space:
            case Uniform(min=lower, max=upper):
                arm[parameter.name] = trial.suggest_float(parameter.name, lower, upper)
            case LogUniform(min=lower, max=upper):
                arm[parameter.name] = trial.suggest_float(parameter.name, lower, upper, log=True)
            case Categorical(values=values):
                arm[parameter.name] = trial.suggest_categorical(parameter.name, list(values))
    return arm
