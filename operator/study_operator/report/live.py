"""What a person sees while a study runs: a live table of trials, or a line a minute where there is no terminal.

Called by the command line. It is given values and draws them; it reads no store and asks no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from study_operator.ledger.trial import Trial, TrialState
from study_operator.report.report import PREDICTOR_NAMES, describe_arm, describe_measurements, name_measurements
from study_operator.spec.study import Study
from trial_trainer.contract import Progress

BAR_WIDTH = 24
STATE_STYLES = {
    TrialState.RUNNING: "cyan",
    TrialState.PAUSED: "yellow",
    TrialState.COMPLETED: "green",
    TrialState.STOPPED: "dim",
    TrialState.FAILED: "red",
    TrialState.ABANDONED: "magenta",
}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A running study at one moment."""

    study: Study
    trials: Sequence[Trial]
    """And the runs of the data curve."""
    progress: Mapping[str, Progress]
    """By name of the trial; only of those that run."""
    final_evaluation: Progress | None = None
    """While it runs."""
    stage: str
    note: str
    """One sentence on what is being waited for; may be empty."""
    elapsed_seconds: float | None
    """Since `finetune-study run` was started; None where nobody waits for it."""


def render_live(snapshot: Snapshot) -> RenderableType:
    """Return the table of trials that is drawn again every second."""
    metric = snapshot.study.objective.metric
    table = Table(expand=False, pad_edge=False)
    table.add_column("trial")
    table.add_column("state")
    table.add_column("arm", max_width=60)
    table.add_column("steps", justify="right")
    table.add_column("", width=BAR_WIDTH)
    table.add_column("loss", justify="right")
    table.add_column("ETA", justify="right")
    for head in name_measurements(snapshot.study):
        table.add_column(head.removeprefix(f"{metric} ") if head.endswith("full length") else head, justify="right")
    for trial in snapshot.trials:
        table.add_row(*_row(snapshot.study, trial, snapshot.progress.get(trial.name)))
    measured = sum(bool(t.measurements) for t in snapshot.trials if t.is_candidate)
    head = f"{snapshot.study.name}: {snapshot.stage}, {measured} of {snapshot.study.num_trials} trials measured"
    if snapshot.elapsed_seconds is not None:
        head += f", {duration(snapshot.elapsed_seconds)}"
    lines: list[RenderableType] = [Text(head, style="bold")]
    if snapshot.note:
        lines.append(Text(snapshot.note, style="dim"))
    if snapshot.final_evaluation is not None:
        lines.append(Text(_describe_evaluation(snapshot.final_evaluation), style="cyan"))
    return Group(*lines, *([table] if snapshot.trials else []))


def _row(study: Study, trial: Trial, progress: Progress | None) -> Sequence[RenderableType]:
    is_live = trial.state is TrialState.RUNNING and progress is not None
    step = progress.step if progress and is_live else max((m.step for m in trial.measurements), default=0)
    loss = f"{progress.loss:.3f}" if progress and is_live and progress.loss is not None else ""
    return (
        Text(trial.name),
        Text(f"{trial.state}: {progress.phase}" if progress and is_live else trial.state, style=_style(trial)),
        Text(_describe_run(trial), overflow="ellipsis", no_wrap=True),
        Text(f"{step}/{trial.total_steps}"),
        ProgressBar(total=max(1, trial.total_steps), completed=step, width=BAR_WIDTH),
        Text(loss),
        Text(duration(progress.eta_seconds) if progress and is_live and progress.eta_seconds is not None else ""),
        *(Text(text) for text in describe_measurements(study, trial)),
    )


def _describe_run(trial: Trial) -> str:
    """Return an arm; of a confirmation or a run of the data curve what differs between them."""
    if trial.repeats is not None:
        return f"trial t{trial.repeats:03d} again, seed {trial.seed}"
    if trial.train_samples is None:
        return describe_arm(trial)
    variants = ", without variants" if trial.without_variants else ""
    return f"data curve: {trial.train_samples} samples, seed {trial.seed}{variants}"


def _style(trial: Trial) -> str:
    return STATE_STYLES.get(trial.state, "")


def lines_of_progress(snapshot: Snapshot) -> list[str]:
    """Return one line for each trial that runs, and for the final evaluation: how far it is."""
    lines = []
    for trial in snapshot.trials:
        progress = snapshot.progress.get(trial.name)
        if progress is not None:
            loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
            step = f"step {progress.step} of {progress.stop_step}"
            lines.append(f"{trial.name} {progress.phase}: {step}{loss}{_describe_rest(progress)}")
    if snapshot.final_evaluation is not None:
        lines.append(_describe_evaluation(snapshot.final_evaluation))
    return lines


def _describe_evaluation(progress: Progress) -> str:
    predictor = PREDICTOR_NAMES.get(progress.phase, progress.phase)
    questions = f"{progress.step} of {progress.stop_step} questions"
    return f"final evaluation: {predictor} {questions}{_describe_rest(progress)}"


def _describe_rest(progress: Progress) -> str:
    return "" if progress.eta_seconds is None else f", {duration(progress.eta_seconds)} left"


def duration(seconds: float) -> str:
    """Return a time as a person says it: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
