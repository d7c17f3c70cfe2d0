"""What a study will cost, before anything runs: the arithmetic behind `finetune-study plan`.

All in passes over pages, because an arm's steps depend on its batch size and its pages do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from study_operator.errors import StudyInvalidError
from study_operator.ledger.merit import list_ranking_metrics
from study_operator.reconcile.job_specs import count_steps
from study_operator.spec.parse import parse_study
from study_operator.spec.study import Categorical, CurveArm, RankBy, Study, complete_arm
from trial_trainer.codec import at_least
from trial_trainer.contract import ContractError, DatasetSummary, from_json

PROMPT_TOKENS = 100
"""Of the words with which a teacher is asked."""
ATTRIBUTE_TOKENS = 25
"""Of an attribute's name and meaning, with which a teacher is asked for it."""

TWO_RUNGS = (5, 20)
MOST_OF_ONE_RUNG = 0.8
"""Of one rung's training; what two need more than that is hardly worth their further starts."""

_Seconds = Annotated[float, at_least(0)]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What this machine was seen to need, in seconds."""

    train_seconds_per_page: _Seconds
    evaluate_seconds_per_page: _Seconds
    start_seconds: _Seconds
    """From the start of a trial's process to its first step."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One row of the plan."""

    name: str
    jobs: int
    training_passes: float | None
    """Passes over the training pages, of all its jobs together; None of the data curve before there is a dataset."""
    validation_passes: int
    test_passes: int
    seconds: float | None
    """Of accelerator time; None where nothing was measured."""
    arithmetic: str
    is_rung: bool = False
    """Whether its jobs are a rung of the trials, of which some are stopped; no extra run is of one."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The budget of a study."""

    phases: tuple[Phase, ...]
    """In their order; the final evaluation is the last."""
    full_passes: float
    """Training passes if every trial ran to its full length."""
    full_seconds: float | None
    """Accelerator time of all trials if each ran to its full length in one go."""
    wall_seconds: float | None

    @property
    def training_passes(self) -> float:
        """Training passes of all trials."""
        return sum(phase.training_passes or 0.0 for phase in self.phases if phase.is_rung)

    @property
    def seconds(self) -> float | None:
        """Accelerator time of the whole study."""
        known = [phase.seconds for phase in self.phases if phase.seconds is not None]
        return sum(known) if len(known) == len(self.phases) else None

    @property
    def saved_training_share(self) -> float:
        """Share of the training that stopping early saves; later rungs' starts and evaluations are no training."""
        return 1 - self.training_passes / self.full_passes

    @property
    def spent_seconds(self) -> float | None:
        """Accelerator time of all runs but the final evaluation: what `ledger.usage` counts as spent of a study."""
        return None if self.seconds is None else self.seconds - (self.phases[-1].seconds or 0.0)

    @property
    def saved_seconds(self) -> float | None:
        """What full-length runs of every trial would take more, as `ledger.usage` counts it.

        Less than nothing where starting and evaluating again costs more than stopping early spares.
        """
        if self.seconds is None or self.full_seconds is None:
            return None
        return self.full_seconds - sum(phase.seconds or 0.0 for phase in self.phases if phase.is_rung)


def parse_calibration(text: str) -> Calibration:
    """Read the last line of a calibration's output, which is its JSON.

    Raises:
        ContractError: naming what is missing or wrong.
    """
    line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    try:
        return from_json(Calibration, line, ignored=[])
    except ContractError as error:
        raise ContractError(f"the calibration must end with a line of JSON, got {line[:200]!r}: {error}") from error


def build_plan(study: Study, summary: DatasetSummary | None, calibration: Calibration | None) -> Plan:
    """Add up a study's phases; seconds only where both the dataset and the machine are known."""
    trials, epochs = study.num_trials, study.trainer.epochs
    # The winner at its end and at its first rung, the untrained model, the baseline.
    predictors = 4 if study.baseline is not None else 3
    costs = _Costs(summary, calibration)
    ends = (0, *study.early_evaluation.rungs, 100)
    names = ["explore", *(f"promote to {percent} %" for percent in ends[2:-1]), "promote"]
    rungs = []
    for name, jobs, begin, end in zip(
        names, (trials, *study.count_continuing(trials)), ends[:-1], ends[1:], strict=True
    ):
        extra = sum(begin < percent < end for percent in study.early_evaluation.extra_percents)
        rungs.append(replace(costs.phase(name, jobs, (end - begin) / 100 * epochs, 1 + extra, 0), is_rung=True))
    further = [*_plan_confirmations(study, costs), *_plan_curve(study, summary, costs)]
    predictors += sum(phase.jobs for phase in further)
    phases = (*rungs, *further, costs.phase("final evaluation", 1, 0.0, 0, predictors))
    measurements = 1 + len(study.early_evaluation.extra_percents)
    return Plan(
        phases=phases,
        full_passes=float(trials * epochs),
        full_seconds=costs.phase("full length", trials, epochs, measurements, 0).seconds,
        wall_seconds=_wall(study, phases),
    )


def _plan_confirmations(study: Study, costs: _Costs) -> Iterator[Phase]:
    """Yield the row of winner and baseline under further seeds."""
    if study.promotion.confirm_seeds:
        yield costs.phase("confirm seeds", 2 * study.promotion.confirm_seeds, float(study.trainer.epochs), 1, 0)


def _plan_curve(study: Study, summary: DatasetSummary | None, costs: _Costs) -> Iterator[Phase]:
    """Yield one row for each size of the data curve; how many passes that takes only a dataset tells."""
    if study.data_curve is None:
        return
    most = summary.splits["train"].samples if summary is not None else None
    for size in study.data_curve.sample_sizes:
        if most is None or size <= most:
            passes = size / most * study.trainer.epochs if most is not None else 0.0
            phase = costs.phase(f"data curve, {size} samples", study.data_curve.runs_of_size, passes, 1, 0)
            yield replace(phase, training_passes=None if most is None else phase.training_passes)


@dataclass(frozen=True)
class _Costs:
    summary: DatasetSummary | None
    calibration: Calibration | None

    def phase(self, name: str, jobs: int, passes: float, validations: int, tests: int) -> Phase:
        """Build one row from what each of its jobs does."""
        seconds, arithmetic = None, ""
        if self.summary is not None and self.calibration is not None:
            cost = self.calibration
            terms = [f"{cost.start_seconds:.1f} s to start"]
            each = cost.start_seconds
            for times, split, price, verb in (
                (passes, "train", cost.train_seconds_per_page, "trained"),
                (validations, "validation", cost.evaluate_seconds_per_page, "read"),
                (tests, "test", cost.evaluate_seconds_per_page, "read"),
            ):
                pages = self.summary.splits[split].pages if split in self.summary.splits else 0
                if times and pages:
                    each += times * pages * price
                    terms.append(f"{times:g} × {pages} pages {verb} × {price:.2f} s")
            seconds = jobs * each
            arithmetic = f"{jobs} × ({' + '.join(terms)})"
        return Phase(
            name=name,
            jobs=jobs,
            training_passes=jobs * passes,
            validation_passes=jobs * validations,
            test_passes=jobs * tests,
            seconds=seconds,
            arithmetic=arithmetic,
        )


def _wall(study: Study, phases: tuple[Phase, ...]) -> float | None:
    total = 0.0
    for phase in phases:
        if phase.seconds is None:
            return None
        rounds = -(-phase.jobs // study.parallel_trials)
        total += phase.seconds / phase.jobs * rounds
    return total


def describe_teacher(study: Study, summary: DatasetSummary | None, pages: int | None) -> Iterator[str]:
    """Yield what a teacher has cost, or may cost at most, in tokens.

    Args:
        study: the study.
        summary: of its dataset, where that is prepared.
        pages: of its source, where they are counted.
    """
    teacher = study.data.teacher
    if teacher is None:
        return
    if summary is not None and summary.teacher is not None:
        taught = summary.teacher
        yield (
            f"teacher {taught.model}: {taught.pages.get('Labelled', 0):,} of {sum(taught.pages.values()):,} pages are "
            f"labelled, with {taught.prompt_tokens:,} tokens of prompts and {taught.answer_tokens:,} of answers"
        )
        return
    prompt = PROMPT_TOKENS + ATTRIBUTE_TOKENS * len(study.data.attributes) + len(teacher.instructions) // 2
    each = study.trainer.max_length_tokens + prompt + teacher.max_answer_tokens
    arithmetic = (
        f"({study.trainer.max_length_tokens:,} of text + about {prompt:,} around it + {teacher.max_answer_tokens:,} of "
        "the answer)"
    )
    if pages is None:
        yield f"teacher {teacher.model}: at most {each:,} tokens a page {arithmetic}; how many pages is not known yet"
    else:
        asked = pages + min(teacher.self_consistency_samples, pages)
        more = "; pages of `spec.data.testSource` without given labels come on top" if study.data.test_source else ""
        yield (
            f"teacher {teacher.model}: at most {asked:,} requests × {each:,} tokens {arithmetic} = "
            f"{asked * each:,}{more}"
        )
    if teacher.max_tokens is not None:
        yield f"`spec.data.labels.teacher.maxTokens` ends the asking at {teacher.max_tokens:,} tokens"


def describe_rungs(study: Study) -> str:
    """Return how many trials run how far when nothing fails, and at once."""
    percents, promotion = study.early_evaluation.rungs, study.promotion
    *counts, full = study.count_continuing(study.num_trials)
    between = "".join(f"{count} to {percent} %, " for count, percent in zip(counts, percents[1:], strict=True))
    audited = f"{promotion.num_audited} audited"
    if study.last_rung > 1 and promotion.num_audited:
        audited = f"{promotion.num_audited * study.last_rung} audited, {promotion.num_audited} from each early rung"
    baseline = ", the baseline" if study.baseline is not None else ""
    by = f" by {' and '.join(list_ranking_metrics(study, 0))}" if promotion.rank_by is not RankBy.OBJECTIVE else ""
    return (
        f"{study.name}: {study.num_trials} trials to {percents[0]} % of {study.trainer.epochs} epochs, then "
        f"{between}{full} to the end ({promotion.num_promoted} promoted{by}, {audited}{baseline}); "
        f"{study.parallel_trials} at a time"
    )


def describe_another_rung(study: Study, manifest: Mapping[str, Any]) -> str:
    """Return what a rung at 5 % before the one at 20 % would save, in one sentence; empty where that is little, or not
    allowed. Recorded runs compare two rungs with one at these two places alone."""
    if study.early_evaluation.rungs != TWO_RUNGS[1:]:
        return ""
    early = {**(manifest["spec"].get("earlyEvaluation") or {}), "rungs": list(TWO_RUNGS)}
    early.pop("checkpointPercent", None)
    try:
        other = parse_study({**manifest, "spec": {**manifest["spec"], "earlyEvaluation": early}})
    except StudyInvalidError:
        return ""
    plans = [build_plan(each, None, None) for each in (study, other)]
    passes, less = (plan.training_passes for plan in plans)
    if less > MOST_OF_ONE_RUNG * passes:
        return ""
    again = sum(other.count_continuing(other.num_trials))
    return (
        f"`spec.earlyEvaluation: {{rungs: [{', '.join(map(str, TWO_RUNGS))}]}}` would train {less:g} passes "
        f"({plans[1].saved_training_share:.0%} less), and start and evaluate again {again} times"
    )


def describe_confirmations(study: Study) -> str:
    """Return how many confirmations there are, in one sentence; empty where none are asked for."""
    seeds = study.promotion.confirm_seeds
    if not seeds:
        return ""
    return f"confirmations: winner and baseline under {seeds} further seeds = {2 * seeds} runs, after the promotions"


def describe_curve(study: Study) -> str:
    """Return how many runs the data curve has, in one sentence; empty where there is none."""
    curve = study.data_curve
    if curve is None:
        return ""
    arm = "the winner" if curve.arm is CurveArm.WINNER else "the baseline"
    product = f"{len(curve.sample_sizes)} sizes × {curve.seeds} seeds"
    product += " × 2 (without variants and with them)" if curve.compare_augmentation else ""
    return f"data curve: {product} = {curve.runs} runs of {arm}'s arm, after the promotions"


def describe_first_arms(study: Study) -> Iterator[str]:
    """Yield each arm that is tried before the optimizer is asked although the manifest does not name it."""
    for typical in study.typical_arms:
        values = ", ".join(f"{name} {value:.3g}" for name, value in typical.arm.items())
        yield f"typical arm: {values} ({typical.source}); `spec.typicalArms: 0` leaves it out"
    for source in study.warm_start_from:
        if source.study is None:
            yield f"warm start: the best arm of the study in {source.uri}, once the data are prepared"
        else:
            yield f"warm start: the best arm of the study {source.study}, once that has ended"


def describe_steps(study: Study, summary: DatasetSummary) -> Iterator[str]:
    """Yield, for each batch size that an arm may have, the steps of a run and how they come about."""
    samples = summary.splits["train"].samples
    space = next((p.search_space for p in study.parameters if p.name == "batch_size"), None)
    sizes = space.values if isinstance(space, Categorical) else (complete_arm({})["batch_size"],)
    for size in sizes:
        total = count_steps(study, {"batch_size": size}, samples)
        yield (
            f"batch size {size}: {study.trainer.epochs} epochs × ⌊{samples} / {size}⌋ = {total} steps, "
            f"the first measurement after {study.stop_step(total, 0)}"
        )
