"""How well an early measurement ranks LoRA arms, by what it reads: accuracy, the right answers' loss, or both.

    PYTHONPATH=operator:trainer python benchmarks/ranking.py [--draws 400] [--least 16]

The arms are those that `record_arms.py` has trained to their full length. A draw is a sample of the validation messages
or pages, as many as hold so many values, asked early; and arms drawn with replacement, each counted once. It tells how
many of the five arms that are best in the end are among the five best early, how the ranks of all agree (Kendall's
tau), and what the best of the three best early arms lacks in the end. "In the end": at full length, on the test set,
which nothing else reads. The weight of the loss is fitted on every second arm of the first recording, and the first
table is of the others; "by both" has the weight of the operator's `rankBy: ObjectiveAndLoss`. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import kendalltau

from record_arms import LEAST_ARMS
from search.recorded import average_over_attributes, count_recorded
from study_operator.ledger.merit import NAT

TABLES = Path(__file__).resolve().parent / "data" / "lora-arms"
PERCENTS = (2, 5, 10, 15, 20, 25, 35, 50, 70)
"""Early measurements."""
VALUES = (50, 117, None)
"""How many values the drawn questions ask for; None: all."""
LARGEST_LOSS = 20.0
"""Nats per token: a diverged arm's loss counts no more, as in the trainer."""
TOP, PROMOTED = 5, 3
WEIGHTS = tuple(np.geomspace(0.01, 3, 26))
"""Accuracy that one nat per token stands for: those that are tried."""

Floats = NDArray[np.float64]
Signal = Callable[["Measured", NDArray[np.intp]], Floats]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Answers of all arms to the same questions at one percentage: arms by questions."""

    rights: Floats
    losses: Floats
    """Nats per token of the right answer."""
    tokens: Floats
    has_value: NDArray[np.bool_]
    """By question."""
    attributes: NDArray[np.str_]
    pages: NDArray[np.str_]

    def draw(self, values: int | None, chance: np.random.Generator) -> NDArray[np.intp]:
        """Return the questions of pages drawn one after the other until they hold so many values."""
        if values is None:
            return np.arange(len(self.pages))
        chosen: list[int] = []
        for page in chance.permutation(np.unique(self.pages)):
            chosen += np.flatnonzero(self.pages == page).tolist()
            if self.has_value[chosen].sum() >= values:
                break
        return np.array(chosen)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One recording: what is read early of each arm, and where it ends."""

    name: str
    early: Mapping[int, Measured]
    final: Floats
    """Accuracy at full length on the test set, by arm; 0 where the arm diverged."""
    parameters: Sequence[Mapping[str, Any]]

    @property
    def halves(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Even and odd arms."""
        arms = np.arange(len(self.final))
        return arms[::2], arms[1::2]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a signal ranked the arms of each draw."""

    kept: Floats
    tau: Floats
    lack: Floats


def accuracy(measured: Measured, asked: NDArray[np.intp]) -> Floats:
    """Return the product's accuracy: the mean over attributes of the share of their values that were answered right."""
    asked = asked[measured.has_value[asked]]
    attributes = measured.attributes[asked]
    return np.mean(
        [measured.rights[:, asked[attributes == name]].mean(axis=1) for name in np.unique(attributes)], axis=0
    )


def negative_loss(measured: Measured, asked: NDArray[np.intp]) -> Floats:
    """Return the negative mean loss of the right answers, nats per token: of each question the same."""
    return -measured.losses[:, asked].mean(axis=1)


def probability(measured: Measured, asked: NDArray[np.intp]) -> Floats:
    """Return the probability of answering right by chance's own choice of tokens: accuracy's, without its jumps."""
    asked = asked[measured.has_value[asked]]
    attributes = measured.attributes[asked]
    chances = np.exp(-measured.losses * measured.tokens)
    return np.mean([chances[:, asked[attributes == name]].mean(axis=1) for name in np.unique(attributes)], axis=0)


def joint(weight: float) -> Signal:
    """Return accuracy less a weight of the loss."""
    return lambda measured, asked: accuracy(measured, asked) + weight * negative_loss(measured, asked)


def read(name: str) -> Recorded:
    """Return a recording's arms of the first seed."""

    def rows(table: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(TABLES / f"{name}-{table}.parquet").to_pylist()
        return [row for row in found if row["seed"] == 0]

    arms = sorted(rows("arms"), key=lambda row: row["arm"])
    place = {row["arm"]: number for number, row in enumerate(arms)}
    final: list[list[Mapping[str, Any]]] = [[] for _ in arms]
    early: dict[int, list[dict[str, Any]]] = {percent: [] for percent in PERCENTS}
    for row in rows("answers"):
        if row["split"] == "test" and row["percent"] == 100 and row["has_value"]:
            final[place[row["arm"]]].append(row)
        elif row["split"] == "validation" and row["percent"] in early:
            early[row["percent"]].append(row)
    return Recorded(
        name=name,
        early={percent: _arrange(found, place) for percent, found in early.items()},
        final=np.array([average_over_attributes(found) for found in final]),
        parameters=arms,
    )


def _arrange(rows: Sequence[Mapping[str, Any]], place: Mapping[int, int]) -> Measured:
    """Lay answers out; an arm that had diverged before answers nothing right, at the largest loss."""
    questions = sorted({(row["page"], row["attribute"], row["has_value"]) for row in rows})
    column = {question[:2]: number for number, question in enumerate(questions)}
    shape = (len(place), len(questions))
    rights, losses, tokens = np.zeros(shape), np.full(shape, LARGEST_LOSS), np.ones(shape)
    for row in rows:
        at = place[row["arm"]], column[row["page"], row["attribute"]]
        rights[at] = row["is_right"]
        losses[at] = LARGEST_LOSS if row["loss"] is None else min(row["loss"], LARGEST_LOSS)
        tokens[at] = row["answer_tokens"]
    pages, attributes, has_value = zip(*questions, strict=True)
    return Measured(
        rights=rights,
        losses=losses,
        tokens=tokens,
        has_value=np.array(has_value),
        attributes=np.array(attributes),
        pages=np.array(pages),
    )


def score(
    recorded: Recorded, percent: int, signal: Signal, *, values: int | None, arms: NDArray[np.intp], draws: int
) -> Score:
    """Rank arms by a signal, again and again. The draws are the same for every signal."""
    chance = np.random.default_rng(0)
    measured = recorded.early[percent]
    found = []
    for _ in range(draws):
        asked = measured.draw(values, chance)
        drawn = np.unique(chance.choice(arms, len(arms)))
        found.append(_judge(signal(measured, asked)[drawn], recorded.final[drawn], chance))
    kept, tau, lack = np.array(found).T
    return Score(kept=kept, tau=tau, lack=lack)


def _judge(early: Floats, final: Floats, chance: np.random.Generator) -> tuple[float, float, float]:
    """Return how many of the top are kept, Kendall's tau, and what the best of the promoted lacks; ties are drawn."""
    ties = chance.random(len(early))
    by_early, by_final = np.lexsort((ties, -early)), np.lexsort((ties, -final))
    kept = len({*by_early[:TOP].tolist()} & {*by_final[:TOP].tolist()})
    tau = kendalltau(early, final).statistic
    return kept, 0.0 if np.isnan(tau) else float(tau), float(final.max() - final[by_early[:PROMOTED]].max())


def fit_weight(recorded: Recorded, percent: int, arms: NDArray[np.intp], draws: int) -> float:
    """Return the weight of the loss that ranks some arms best at 117 values."""
    taus = [
        score(recorded, percent, joint(weight), values=117, arms=arms, draws=draws).tau.mean() for weight in WEIGHTS
    ]
    return float(WEIGHTS[int(np.argmax(taus))])


def describe(values: Floats, scale: float = 1.0, digits: int = 2) -> str:
    """Return the mean with the 90 % interval of the draws."""
    low, high = np.quantile(values, (0.05, 0.95)) * scale
    return f"{values.mean() * scale:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})".replace("-", "−")


def main() -> None:
    """Print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--least", type=int, help="arms, of which a recording must have as many")
    given = parser.parse_args()
    draws = given.draws
    least_by_name = {name: given.least or least for name, least in LEAST_ARMS.items()}
    found = [read(name) for name, least in least_by_name.items() if count_recorded(name) >= least]
    if not found:
        wanted = " or ".join(f"{least} arms of {name}" for name, least in least_by_name.items())
        raise SystemExit(f"{TABLES} must hold {wanted}: record_arms.py records them")
    fitted, _ = found[0].halves
    weight = fit_weight(found[0], 20, fitted, draws)
    print(f"Fitted on {len(fitted)} arms, a nat per token counts as {100 * weight:.0f} points of accuracy.\n")
    signals: dict[str, Signal] = {
        "accuracy": accuracy,
        "accuracy, ties by loss": joint(1e-6),
        "loss": negative_loss,
        "probability": probability,
        "by both": joint(NAT),
        "fitted": joint(weight),
    }
    for recorded in found:
        if recorded is found[0]:
            print_signals(recorded, recorded.halves[1], signals, draws)
        print_signals(recorded, np.arange(len(recorded.final)), signals, draws)
        print_percents(recorded, signals, draws)


def print_signals(recorded: Recorded, arms: NDArray[np.intp], signals: Mapping[str, Signal], draws: int) -> None:
    """Print how each signal ranks at 20 %, and how it differs from accuracy, draw by draw."""
    print(f"{recorded.name}: {len(arms)} arms at 20 %\n")
    print("| values asked | ranked by | top 5 kept | − accuracy's | tau | − accuracy's | best of three lacks, points |")
    print("|---|---|---|---|---|---|---|")
    known = int(recorded.early[20].has_value.sum())
    for values in VALUES:
        if values is not None and values >= known:
            continue
        plain = score(recorded, 20, accuracy, values=values, arms=arms, draws=draws)
        for name, signal in signals.items():
            of = score(recorded, 20, signal, values=values, arms=arms, draws=draws)
            cells = [
                describe(of.kept),
                describe(of.kept - plain.kept) if name != "accuracy" else "",
                describe(of.tau),
                describe(of.tau - plain.tau) if name != "accuracy" else "",
                describe(of.lack, 100, 1),
            ]
            print(f"| {values or f'all {known}'} | {name} | {' | '.join(cells)} |")
    print()


def print_percents(recorded: Recorded, signals: Mapping[str, Signal], draws: int) -> None:
    """Print how well all questions rank all arms at each percentage."""
    arms = np.arange(len(recorded.final))
    print(f"{recorded.name}: all {len(arms)} arms, all questions\n")
    print(f"| % | {' | '.join(f'{name}: top 5 kept, tau' for name in signals)} |")
    print("|---" * (1 + len(signals)) + "|")
    for percent in PERCENTS:
        found = [score(recorded, percent, s, values=None, arms=arms, draws=draws) for s in signals.values()]
        print(f"| {percent} | {' | '.join(f'{describe(of.kept, digits=1)}, {describe(of.tau)}' for of in found)} |")
    print()


if __name__ == "__main__":
    main()
