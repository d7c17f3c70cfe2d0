"""The test set, read once: the winner beside the baseline, the untrained model, rules and constants.

Called by ``python -m trial_trainer final-evaluation`` after the winner was chosen by validation alone. How a model is
loaded and asked is handed in, so nothing here knows torch. Under its output prefix lie

* ``predictions.jsonl``: a line for each question, with its gold values and the answer of every predictor, but not
  of confirmations and the data curve's runs;
* ``examples.json``: the contract's `Examples`, a few pages with their questions and answers, for people;
* ``final-evaluation.json``: the contract's `FinalEvaluation`, written last and once. Where there is one already, it
  stands, unless it is of another winner's arm, data or model.

How far it is lies meanwhile at ``config.progress``.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from statistics import fmean

from trial_trainer.artifacts import ArtifactStore, open_store
from trial_trainer.contract import (
    EXAMPLES,
    FINAL_EVALUATION,
    MEASUREMENT,
    PREDICTIONS,
    TRAINING_LOSSES,
    Candidate,
    ContractError,
    FinalEvaluation,
    FinalEvaluationConfig,
    Interval,
    PredictorScores,
    Progress,
    RungMeasurement,
    SeedInterval,
    WinnerChange,
    from_json,
    to_json,
)
from trial_trainer.dataset.store import TEST, DatasetIndex, Page, Question, confirm_fingerprint, read_index, read_split
from trial_trainer.errors import StudyError
from trial_trainer.evaluation import measure
from trial_trainer.evaluation.examples import ReadText, choose_examples
from trial_trainer.evaluation.measure import Mean, Prediction, build_prediction
from trial_trainer.progress import write_progress
from trial_trainer.results import is_there, read_digest, write_once

WINNER, BASELINE, UNTRAINED, RULE_BASED, CONSTANT = "winner", "baseline", "untrained", "rule_based", "constant"
WINNER_EARLY = "winner_early"
MEANS: tuple[Mean, ...] = ("hand_labelled", "all_asked")

_BASELINES: dict[str, Callable[[Question], str | None]] = {
    RULE_BASED: lambda question: question.rule,
    CONSTANT: lambda question: question.constant,
}

log = logging.getLogger(__name__)

Answer = Callable[[Candidate | None, Sequence[Page], DatasetIndex, Callable[[int], None]], Sequence[Prediction]]
"""Ask a model every question of the pages, in dataset order: a candidate's adapter, or None for the untrained model.
The last argument is to be called with the number of questions that are answered so far."""

PROGRESS_SECONDS = 2.0
"""The progress object is refreshed at most so often."""


def run_final_evaluation(
    config: FinalEvaluationConfig,
    *,
    answer: Answer,
    read_text: ReadText = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> FinalEvaluation:
    """Read the test set and write the final evaluation; return the one that stands in the output prefix.

    Args:
        config: who is evaluated, on which dataset.
        answer: asks one model.
        read_text: returns the text of a page, for the examples.
        clock: seconds of a clock that never goes back.

    Raises:
        DatasetError: where the dataset is not whole or has no test split.
        ContractError: where the output holds the final evaluation of another winner.
        StudyError: where an adapter is another arm's.
    """
    store = open_store(config.output)
    standing = _read_final_evaluation(config, store)
    if standing is not None:
        return standing

    dataset = open_store(config.dataset)
    confirm_fingerprint(dataset, config.dataset_fingerprint, "FinalEvaluationConfig.dataset")
    pages, index = read_split(dataset, TEST), read_index(dataset)

    # The models.
    candidates = _candidates(config)
    if config.winner_early is not None and WINNER_EARLY not in candidates:
        log.warning("%s is gone: nothing is said of the winner at its first rung", config.winner_early.adapter)
    questions = sum(len(page.questions) for page in pages)
    models = len(candidates) + 2 * len(config.confirmations) + len(config.curve)
    teller = _Teller(config, questions, models=models, clock=clock)
    seconds: dict[str, float] = {}

    def ask(name: str, candidate: Candidate | None) -> Sequence[Prediction]:
        _check_adapter(candidate)
        started = clock()
        given = answer(candidate, pages, index, teller.begin(name))
        seconds[name] = clock() - started
        _check_complete(name, given, pages)
        return given

    predictions = {name: ask(name, candidate) for name, candidate in candidates.items()}
    if config.baseline is not None and BASELINE not in predictions:
        predictions[BASELINE] = predictions[WINNER]

    # Winner and baseline under further seeds.
    confirmations: dict[str, PredictorScores] = {}
    pairs: dict[str, tuple[Sequence[Prediction], Sequence[Prediction]]] = {}
    for pair in config.confirmations:
        winner, baseline = ask(pair.winner.trial, pair.winner), ask(pair.baseline.trial, pair.baseline)
        pairs[str(pair.seed)] = winner, baseline
        confirmations |= {pair.winner.trial: _score(WINNER, winner), pair.baseline.trial: _score(BASELINE, baseline)}

    # The data curve's: their answers are scored and forgotten, as there may be hundreds of runs.
    curve = {run.trial: _score(run.trial, ask(run.trial, run)) for run in config.curve}

    # Their baselines, whose answers came with the dataset.
    for name, say in _BASELINES.items():
        given = _predict(pages, say)
        # Ready samples have no rules: an baseline that never says a word is none.
        if any(p.answer for p in given):
            predictions[name] = given

    final_evaluation = FinalEvaluation(
        study=config.study,
        winner=config.winner.trial,
        predictors={name: _score(name, given) for name, given in predictions.items()},
        gains=_measure_gains(predictions),
        seconds=seconds,
        winner_change=_measure_change(config),
        confirmations=confirmations,
        seed_gains=_measure_seed_gains(pairs),
        curve=curve,
        digest=config.digest,
    )
    store.write(PREDICTIONS, _render_predictions(predictions).encode())
    # A baseline that won has the winner's answers.
    reference = BASELINE if BASELINE in candidates else UNTRAINED
    examples = replace(choose_examples(pages, predictions, reference, read_text), digest=config.digest)
    store.write(EXAMPLES, to_json(examples).encode())
    if not write_once(store, FINAL_EVALUATION, final_evaluation):
        return _read_final_evaluation(config, store) or final_evaluation
    return final_evaluation


def _read_final_evaluation(config: FinalEvaluationConfig, store: ArtifactStore) -> FinalEvaluation | None:
    data = store.read(FINAL_EVALUATION) if is_there(store, FINAL_EVALUATION, config.digest) else None
    if data is None:
        return None
    final_evaluation = from_json(FinalEvaluation, data)
    if (final_evaluation.study, final_evaluation.winner) != (config.study, config.winner.trial):
        raise ContractError(
            f"FinalEvaluationConfig.winner must be {final_evaluation.winner!r} of study {final_evaluation.study!r}, "
            f"whose final evaluation stands in {store.uri}, got {config.winner.trial!r} of {config.study!r}: the test "
            "set is read once"
        )
    return final_evaluation


class _Teller:
    """Tells how far the final evaluation is, for whoever waits."""

    def __init__(
        self, config: FinalEvaluationConfig, questions: int, *, models: int, clock: Callable[[], float]
    ) -> None:
        self._config = config
        self._questions = questions
        self._models = models
        self._clock = clock
        self._started = clock()
        self._told_at = -PROGRESS_SECONDS
        self._begun = 0

    def begin(self, name: str) -> Callable[[int], None]:
        """Begin with the next model; return what takes the number of its questions that are answered."""
        before = self._begun * self._questions
        self._begun += 1
        self._tell(name, before, 0)
        return lambda answered: self._tell(name, before, answered)

    def _tell(self, name: str, before: int, answered: int) -> None:
        if self._config.progress is None:
            return
        now = self._clock()
        if answered and now - self._told_at < PROGRESS_SECONDS:
            return
        self._told_at = now
        done, total = before + answered, self._models * self._questions
        progress = Progress(
            step=answered,
            stop_step=self._questions,
            total_steps=total,
            loss=None,
            phase=name,
            eta_seconds=(now - self._started) / done * (total - done) if done else None,
            updated_at=datetime.now(UTC).isoformat(timespec="seconds"),
            digest=self._config.digest,
        )
        write_progress(self._config.progress, progress)


def _candidates(config: FinalEvaluationConfig) -> dict[str, Candidate | None]:
    """The models to ask, in order. A baseline that won is not asked twice."""
    candidates: dict[str, Candidate | None] = {WINNER: config.winner}
    early = config.winner_early
    # What somebody has deleted since must not cost the study its end.
    if early is not None and next(iter(open_store(early.adapter).list()), None) is not None:
        candidates[WINNER_EARLY] = early
    if config.baseline is not None and config.baseline.trial != config.winner.trial:
        candidates[BASELINE] = config.baseline
    candidates[UNTRAINED] = None
    return candidates


def _check_adapter(candidate: Candidate | None) -> None:
    """Make sure that an adapter is that of the trial it is evaluated for: the measurement beside it tells."""
    if candidate is None or not candidate.digest:
        return
    found = read_digest(_rung_of(candidate), MEASUREMENT)
    # Trainers of earlier versions wrote none.
    if found and found != candidate.digest:
        raise StudyError(
            f"the adapter of trial {candidate.trial} must lie beside a measurement with the digest "
            f"{candidate.digest!r}, got {found!r}: {candidate.adapter}"
        )


def _measure_change(config: FinalEvaluationConfig) -> WinnerChange | None:
    """Compare what the winner's first rung and its last one have written; None where they have nothing in common."""
    if config.winner_early is None:
        return None
    early, late = (_rung_of(candidate) for candidate in (config.winner_early, config.winner))
    try:
        measured = early.read(MEASUREMENT)
        before, after = _read_predictions(early), _read_predictions(late)
        if measured is None or not before or not after:
            return None
        accuracy = measure.paired_gain(after, before, measure="all_asked")
        loss = measure.paired_loss_change(after, before)
        training = _read_training_losses(late, from_json(RungMeasurement, measured, ignored=[]).step)
    except ValueError as error:
        # A trainer of somebody else's may write other lines.
        log.warning("the winner's rungs cannot be compared on validation: %s", error)
        return None
    return WinnerChange(accuracy=accuracy, loss=loss, training_loss_before=training[0], training_loss_after=training[1])


def _rung_of(candidate: Candidate) -> ArtifactStore:
    """Return the output of the rung that an adapter is of."""
    return open_store(candidate.adapter.rstrip("/").rpartition("/")[0])


def _read_predictions(rung: ArtifactStore) -> list[Prediction]:
    return [from_json(Prediction, line, ignored=[]) for line in (rung.read(PREDICTIONS) or b"").splitlines()]


def _read_training_losses(rung: ArtifactStore, first_end: int) -> tuple[float | None, float | None]:
    """Return the mean training loss of the last steps of the first rung, and of as many at the end."""
    losses = json.loads(rung.read(TRAINING_LOSSES) or b"[]")
    if not isinstance(losses, list) or not all(type(x) in (int, float) and math.isfinite(x) for x in losses):
        log.warning("the winner's training losses must be a list of finite numbers: they are not compared")
        return None, None
    window = min(first_end, len(losses) - first_end)
    if window < 1:
        return None, None
    return fmean(losses[first_end - window : first_end]), fmean(losses[-window:])


def _check_complete(name: str, predictions: Sequence[Prediction], pages: Sequence[Page]) -> None:
    asked = [(page.id, question.attribute, question.gold) for page in pages for question in page.questions]
    answered = [(p.page, p.attribute, p.gold) for p in predictions]
    if asked != answered:
        raise ValueError(
            f"the answers of {name} must be those to the {len(asked)} questions of the test set in their order, "
            f"got {len(answered)} answers"
            + next(
                (
                    f", first wrong: {got!r} for {want!r}"
                    for want, got in zip(asked, answered, strict=False)
                    if want != got
                ),
                "",
            )
        )


def _predict(pages: Sequence[Page], say: Callable[[Question], str | None]) -> list[Prediction]:
    return [
        build_prediction(page, question, answer=say(question) or "") for page in pages for question in page.questions
    ]


def _score(name: str, predictions: Sequence[Prediction]) -> PredictorScores:
    return PredictorScores(
        hand_labelled=measure.hand_labelled(predictions),
        all_asked=measure.all_asked(predictions),
        by_attribute=measure.accuracy_by_attribute(predictions),
        invalid_output_rate=measure.invalid_output_rate(predictions, may_be_silent=name in _BASELINES),
        false_value_rate=measure.false_value_rate(predictions),
        cut_answer_rate=measure.cut_answer_rate(predictions),
    )


def _measure_gains(predictions: Mapping[str, Sequence[Prediction]]) -> dict[str, Interval]:
    """Pair the winner with each predictor, by each mean that any question has; a baseline that won has no gain."""
    gains = {
        f"{mean}/{WINNER}-{other}": measure.paired_gain(predictions[WINNER], predictions[other], measure=mean)
        for mean in MEANS
        for other in predictions
        if predictions[other] is not predictions[WINNER]
    }
    return {name: gain for name, gain in gains.items() if gain is not None}


def _measure_seed_gains(
    pairs: Mapping[str, tuple[Sequence[Prediction], Sequence[Prediction]]],
) -> dict[str, SeedInterval]:
    """Measure the gain over the baseline over further seeds, by each mean that any question has."""
    gains = {f"{mean}/{WINNER}-{BASELINE}": measure.paired_gain_over_seeds(pairs, measure=mean) for mean in MEANS}
    return {name: gain for name, gain in gains.items() if gain is not None}


def _render_predictions(predictions: Mapping[str, Sequence[Prediction]]) -> str:
    lines = []
    for given in zip(*predictions.values(), strict=True):
        asked = given[0]
        line = {
            "page": asked.page,
            "site": asked.site,
            "attribute": asked.attribute,
            "origin": asked.origin,
            "gold": asked.gold,
            "answers": {name: p.answer for name, p in zip(predictions, given, strict=True)},
            "unfinished": [name for name, p in zip(predictions, given, strict=True) if not p.finished],
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)
