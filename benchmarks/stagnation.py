"""What it brings, and costs, that a search explores when it stagnates: paired searches of functions made up for it.

    PYTHONPATH=operator:trainer python benchmarks/stagnation.py [--seeds 80] [--trials 24] [--ax]

Each search has 24 trials over a learning rate and a dropout, the first five spread out. With `--ax` the operator's own
optimizer proposes, which takes five seconds a search; one of the two is told that it never stagnates. Those pairs are
kept in `benchmarks/data/stagnation.jsonl`: what is there is not run again, so that seeds may be added later. After a
change of the search its lines are deleted. Without `--ax` a stand-in proposes, the same for both searches of a pair: a
Gaussian process in numpy on the measurements' normal scores, its length scale and noise chosen by their likelihood, and
expected improvement over 512 Sobol points. One of the two explores where `ledger.stagnation` says so, as `optimizer.ax`
does: every second arm is the candidate that best fills the gaps between all arms. Until then both are the same.

A measurement is the function's value and normal noise with the standard deviation of 2 points, which it carries as its
standard error. The functions:

* one basin: 70 % at its best, broad, its place drawn by the seed;
* a hidden second one: beside it, far away, another of 85 %, so narrow that 6 % of the space are better than the first.

Found: an arm was tried whose true value is above all of the first basin. Regret: the best there is minus the true value
of the arm that was measured best. Which one that is, is half chance; so the difference that exploring makes is also
given as expected over that chance, every arm of a search being measured anew. Differences have 95 % intervals over
seeds; p is McNemar's exact test.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, qmc, rankdata

# The made-up studies are the tests' own.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from builders.ledgers import a_measurement, a_study, a_trial
from study_operator.ledger.stagnation import find_stagnation
from study_operator.ledger.trial import Trial, TrialState
from study_operator.optimizer.designer import STAGNATION_NODE
from study_operator.optimizer.gaps import find_gap, place
from study_operator.spec.study import Arm, LogUniform, Parameter, Study, Uniform

Array = NDArray[np.float64]

RESULTS = Path(__file__).resolve().parent / "data" / "stagnation.jsonl"
NOISE, INITIAL, CANDIDATES = 0.02, 5, 512
MEASURED_ANEW = 2_000
LOWEST, FIRST, SECOND = 0.3, 0.7, 0.85
BROAD, NARROW = 0.35, 0.18
PARAMETERS = (
    Parameter(name="learning_rate", search_space=LogUniform(min=1e-5, max=1e-2)),
    Parameter(name="lora_dropout", search_space=Uniform(min=0.0, max=0.2)),
)
LENGTHS, NOISES = (0.15, 0.25, 0.4, 0.7), (0.01, 0.1, 0.5)


@dataclass(frozen=True, kw_only=True)
class Function:
    """What is searched: the places of its basins in the unit cube."""

    first: Array
    second: Array | None
    narrow: float
    """Width of the second."""

    def __call__(self, point: Array) -> float:
        """Return the true value at a point."""
        values = [self._basin(point, self.first, FIRST, BROAD)]
        if self.second is not None:
            values.append(self._basin(point, self.second, SECOND, self.narrow))
        return max(values)

    @property
    def best(self) -> float:
        """The highest value that there is."""
        return FIRST if self.second is None else SECOND

    def _basin(self, point: Array, centre: Array, height: float, width: float) -> float:
        squared = float(((point - centre) ** 2).sum())
        return LOWEST + (height - LOWEST) * math.exp(-squared / (2 * width**2))


def draw_function(seed: int, width: float | None) -> Function:
    """Draw where the basins are, at least 0.6 apart; the second of so much width, None: there is none."""
    chance = np.random.default_rng(seed)
    while True:
        first, second = chance.uniform(0.1, 0.9, (2, len(PARAMETERS)))
        if np.linalg.norm(first - second) >= 0.6:
            return Function(first=first, second=None if width is None else second, narrow=width or NARROW)


def _arm(point: Array) -> dict[str, float]:
    return {
        "learning_rate": 1e-5 * 1e3 ** float(point[0]),
        "lora_dropout": 0.2 * float(point[1]),
    }


def expect_improvement(points: Array, values: Array, candidates: Array) -> Array:
    """Return the expected improvement at candidates of a Gaussian process on normal scores."""
    scores = norm.ppf(rankdata(values) / (len(values) + 1))

    def kernel(a: Array, b: Array, length: float) -> Array:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / (2 * length**2))

    def fit(length: float, noise: float) -> tuple[float, Array, Array]:
        lower = np.linalg.cholesky(kernel(points, points, length) + noise * np.eye(len(points)))
        white = np.linalg.solve(lower, scores)
        return -0.5 * float(white @ white) - float(np.log(np.diag(lower)).sum()), lower, white

    length, noise = max(((le, no) for le in LENGTHS for no in NOISES), key=lambda both: fit(*both)[0])
    _, lower, white = fit(length, noise)
    across = np.linalg.solve(lower, kernel(points, candidates, length))
    mean, deviation = across.T @ white, np.sqrt(np.maximum(1 - (across**2).sum(axis=0), 1e-9))
    best = float((kernel(points, points, length) @ np.linalg.solve(lower.T, white)).max())
    z = (mean - best) / deviation
    return np.asarray(deviation * (z * norm.cdf(z) + norm.pdf(z)))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one search found."""

    is_second: bool
    regret: float
    expected_regret: float
    """Its mean, were every arm measured anew."""
    explored: int


def find(function: Function, truths: Sequence[float], measured: Sequence[float], explored: int) -> Found:
    """Return what a search found, of its arms' true and measured values."""
    again = np.array(truths) + np.random.default_rng(0).normal(0, NOISE, (MEASURED_ANEW, len(truths)))
    return Found(
        is_second=max(truths) > FIRST,
        regret=function.best - truths[int(np.argmax(measured))],
        expected_regret=function.best - float(np.array(truths)[again.argmax(axis=1)].mean()),
        explored=explored,
    )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two searches of one seed."""

    seed: int
    trials: int
    width: float | None
    without: Found
    exploring: Found


def search(seed: int, *, trials: int, width: float | None, explores: bool) -> Found:
    """Run one search; everything that is drawn depends on the seed and the number of the trial alone."""
    function = draw_function(seed, width)
    study = replace(a_study(), parameters=PARAMETERS, num_trials=trials, baseline=None)
    initial = qmc.Sobol(len(PARAMETERS), seed=seed).random(8)
    noise = np.random.default_rng(seed + 10**6).normal(0, NOISE, trials)
    points: list[Array] = []
    ledger: list[Trial] = []
    explored = 0
    was_explored = False
    for index in range(trials):
        candidates = qmc.Sobol(len(PARAMETERS), seed=1_000 * seed + index).random(CANDIDATES)
        if index < INITIAL:
            point = initial[index]
        elif explores and not was_explored and find_stagnation(study, ledger).is_stagnating:
            point, was_explored = _fill_gap(study, candidates, ledger), True
            explored += 1
        else:
            values = np.array(_read_values(ledger))
            point = candidates[int(np.argmax(expect_improvement(np.array(points), values, candidates)))]
            was_explored = False
        points.append(point)
        measured = a_measurement(0, function(point) + float(noise[index]), standard_error=NOISE)
        ledger.append(a_trial(index + 1, arm=_arm(point), state=TrialState.PAUSED, measurements=(measured,)))
    return find(function, [function(point) for point in points], _read_values(ledger), explored)


def search_with_ax(seed: int, *, trials: int, width: float | None, explores: bool) -> Found:
    """Run one search with the operator's optimizer, one arm at a time."""
    import torch

    from study_operator.optimizer import ax

    torch.set_num_threads(1)
    function = draw_function(seed, width)
    study = replace(a_study(), parameters=PARAMETERS, num_trials=trials, baseline=None, seed=seed)
    noise = np.random.default_rng(seed + 10**6).normal(0, NOISE, trials)
    ledger: list[Trial] = []
    never = partial(mock.patch.object, ax, "find_stagnation", lambda *_: mock.Mock(is_stagnating=False))
    with contextlib.nullcontext() if explores else never():
        for index in range(trials):
            ((arm, node),) = [(s.arm, s.generation_node) for s in ax.AxDesigner().suggest(study, ledger, 1)]
            value = function(_find_point(study, arm)) + float(noise[index])
            measured = a_measurement(0, value, standard_error=NOISE)
            ledger.append(
                a_trial(index + 1, arm=arm, state=TrialState.PAUSED, measurements=(measured,), generation_node=node)
            )
    explored = sum(trial.generation_node == STAGNATION_NODE for trial in ledger)
    truths = [function(_find_point(study, trial.arm)) for trial in ledger]
    return find(function, truths, _read_values(ledger), explored)


def _find_point(study: Study, arm: Arm) -> Array:
    return np.array([coordinate for _, coordinate in place(study.parameters, arm)])


def _fill_gap(study: Study, candidates: Array, ledger: list[Trial]) -> Array:
    places = [place(study.parameters, _arm(point)) for point in candidates]
    return candidates[find_gap(places, [place(study.parameters, trial.arm) for trial in ledger])]


def _read_values(ledger: Sequence[Trial]) -> list[float]:
    return [trial.measurements[0].value for trial in ledger]


def compare(seed: int, *, trials: int, width: float | None, is_ax: bool) -> Pair:
    """Run a pair."""
    chosen: Callable[..., Found] = search_with_ax if is_ax else search
    run = partial(chosen, seed, trials=trials, width=width)
    return Pair(seed=seed, trials=trials, width=width, without=run(explores=False), exploring=run(explores=True))


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs that a file holds, one a line."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [Pair(**{**row, "without": Found(**row["without"]), "exploring": Found(**row["exploring"])}) for row in rows]


def describe(pairs: Sequence[Pair], name: str, trials: int) -> str:
    """Return one row of the table."""
    without, exploring = [pair.without for pair in pairs], [pair.exploring for pair in pairs]
    gained = sum(pair.exploring.is_second and not pair.without.is_second for pair in pairs)
    lost = sum(pair.without.is_second and not pair.exploring.is_second for pair in pairs)
    p = binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
    found = [f"{sum(each.is_second for each in side)} of {len(pairs)}" for side in (without, exploring)]
    cells = [name, str(trials), f"{statistics.fmean(each.explored for each in exploring):.1f}"]
    cells += [*found, f"{p:.2g}"] if max(each.is_second for each in (*without, *exploring)) else ["–", "–", "–"]
    cells += [f"{100 * statistics.fmean(each.regret for each in side):.2f}" for side in (without, exploring)]
    cells.append(_say_mean([pair.exploring.regret - pair.without.regret for pair in pairs]))
    cells.append(f"{100 * statistics.fmean(each.expected_regret for each in without):.2f}")
    cells.append(_say_mean([pair.exploring.expected_regret - pair.without.expected_regret for pair in pairs]))
    return f"| {' | '.join(cells)} |"


def _say_mean(differences: Sequence[float]) -> str:
    mean, error = statistics.fmean(differences), 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{100 * mean:+.2f} ({100 * (mean - error):+.2f} to {100 * (mean + error):+.2f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=80)
    parser.add_argument("--trials", type=int, nargs="+", default=[24])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--widths", type=float, nargs="*", default=[NARROW], help="of the hidden basin")
    parser.add_argument("--one", action=argparse.BooleanOptionalAction, default=True, help="also with one basin")
    parser.add_argument("--ax", action="store_true", help="the operator's own optimizer proposes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of Ax: file of what was run, which is added to")
    arguments = parser.parse_args()
    print(
        "| function | trials | explored | found | found, exploring | p | regret | exploring | difference, points "
        "| expected regret | difference, points |"
    )
    print(f"|{'---|' * 11}", flush=True)
    with ProcessPoolExecutor(arguments.processes) as pool:
        for width in [*arguments.widths, *([None] if arguments.one else [])]:
            name = "one basin" if width is None else f"a hidden second basin, {width:g} wide"
            for trials in arguments.trials:
                known = read_pairs(arguments.results) if arguments.ax else []
                pairs = [pair for pair in known if (pair.trials, pair.width) == (trials, width)]
                missing = [seed for seed in range(arguments.seeds) if seed not in {pair.seed for pair in pairs}]
                for pair in pool.map(partial(compare, trials=trials, width=width, is_ax=arguments.ax), missing):
                    pairs.append(pair)
                    if arguments.ax:
                        with arguments.results.open("a", encoding="utf-8") as file:
                            file.write(f"{json.dumps(asdict(pair))}\n")
                print(describe(pairs, name, trials), flush=True)


if __name__ == "__main__":
    main()
