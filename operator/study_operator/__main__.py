"""The command line: `finetune-study run|plan|trials|report|watch study.yaml`; as `kubectl finetune`, too.

    finetune-study run study.yaml                       run a study on this machine, or go on with it
    finetune-study plan study.yaml [--calibrate]        what it will cost
    finetune-study trials study.yaml [--format json]    its trials, also while it runs
    finetune-study report study.yaml [--format json]    its result, also while it runs
    finetune-study watch study.yaml                     the report's page in a browser, with its news

Relative paths in a manifest are relative to the manifest. Exit codes: 0 the study is complete (or the question was
answered), 1 the study failed, 2 the manifest, a flag or a path cannot be used, 130 interrupted: the same command goes
on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from study_operator.laptop import session
from study_operator.laptop.loop import Ending
from study_operator.laptop.runner import GRACE_SECONDS
from study_operator.laptop.session import TRAINER, Display, Opened, UsageError
from study_operator.laptop.watch import PORT, Source, find_source, open_prefix, serve
from study_operator.optimizer.designer import Optimizer
from study_operator.report.estimate import (
    Calibration,
    Plan,
    build_plan,
    describe_another_rung,
    describe_confirmations,
    describe_curve,
    describe_first_arms,
    describe_rungs,
    describe_steps,
    describe_teacher,
)
from study_operator.report.live import Snapshot, duration, lines_of_progress, render_live
from study_operator.report.report import describe_hours, describe_saved, print_report, render_json, render_trials
from trial_trainer.contract import DatasetSummary

COMPLETE, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

LAST_PORT = 65535
PROGRESS_LINE_SECONDS = 60.0
"""Where there is no terminal, a trial says this often how far it is."""


def main(
    argv: Sequence[str] | None = None,
    *,
    trainer: Sequence[str] = TRAINER,
    designer: Optimizer | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> int:
    """Run a command and return its exit code.

    Args:
        argv: the arguments; None means those of the process.
        trainer: the command that keeps the trial contract.
        designer: what proposes arms; None means Ax.
        grace_seconds: time for a checkpoint between SIGTERM and SIGKILL.
    """
    arguments = _parser().parse_args(argv)
    # Where nobody watches, lines are not cut to a width that nobody has.
    width = None if sys.stdout.isatty() else 200
    output = Console(highlight=False, width=width)
    try:
        if arguments.command == "watch":
            return _watch(output, arguments)
        opened = session.open_manifest(arguments.manifest, arguments.directory)
        match arguments.command:
            case "run":
                is_live = output.is_terminal and not arguments.plain
                return _run(opened, output, is_live, trainer, designer, grace_seconds)
            case "plan":
                return _plan(opened, output, trainer, is_calibrating=arguments.calibrate)
            case "trials":
                return _show_trials(opened, output, arguments.format)
            case "ask":
                return _ask(opened, output, arguments, trainer)
            case _:
                return _show_report(opened, output, arguments.format)
    except UsageError as error:
        for line in str(error).splitlines():
            print(f"finetune-study: {line}", file=sys.stderr)
        return UNUSABLE
    except BrokenPipeError:
        # `finetune-study trials … | head`: nobody reads any more, and that is nobody's fault.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return COMPLETE
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune-study",
        description="Search LoRA hyperparameters with early measurements: try many arms briefly, train the best fully.",
        epilog="Exit codes: 0 complete, 1 the study failed, 2 unusable manifest, flag or path, 130 interrupted.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a study on this machine, or go on with it")
    plan = commands.add_parser("plan", help="say what a study will cost, before anything runs")
    trials = commands.add_parser("trials", help="show the trials of a study, finished or running")
    report = commands.add_parser("report", help="show the result of a study, finished or running")
    ask = commands.add_parser("ask", help="ask the winner's adapter about pages or texts")
    watch = commands.add_parser("watch", help="serve the report's page on this machine, with news as they come")
    watch.add_argument(
        "study",
        metavar="STUDY.YAML|URI",
        help="a manifest, or a study's prefix or report in a bucket, as status.reportURI names it",
    )
    watch.add_argument("--port", type=_port, default=PORT, help="of 127.0.0.1 (default: %(default)s; 0: a free one)")
    for command in (run, plan, trials, report, ask):
        command.add_argument("manifest", type=Path, metavar="STUDY.YAML")
    for command in (run, plan, trials, report, ask, watch):
        command.add_argument(
            "--directory",
            type=Path,
            metavar="DIR",
            help="where the study's status, jobs and logs are kept (default: .finetune-study/NAMESPACE/NAME in the "
            "directory of spec.storage.uri, or beside the manifest where that is a bucket)",
        )
    run.add_argument("--plain", action="store_true", help="lines instead of a live table, as without a terminal")
    plan.add_argument("--calibrate", action="store_true", help="prepare the data and measure this machine, 20 seconds")
    ask.add_argument("files", nargs="+", metavar="FILE", help="pages (.html) or texts; - is one on stdin")
    ask.add_argument("--attribute", action="append", default=[], help="one of the study's attributes; all without it")
    ask.add_argument("--url", help="address of the page, where there is one file")
    for command in (trials, report, ask):
        command.add_argument("--format", choices=("table", "json"), default="table")
    return parser


# --- run --------------------------------------------------------------------------------------------------------


def _run(
    opened: Opened,
    output: Console,
    is_live: bool,
    trainer: Sequence[str],
    designer: Optimizer | None,
    grace_seconds: float,
) -> int:
    handler = _ConsoleHandler(output)
    logger = logging.getLogger("study_operator")
    logger.setLevel(logging.WARNING if is_live else logging.INFO)
    logger.addHandler(handler)
    try:
        if is_live:
            with Live(console=output, auto_refresh=False, transient=True) as live:
                ended = session.run(
                    opened, _LiveDisplay(live), trainer=trainer, designer=designer, grace_seconds=grace_seconds
                )
        else:
            plain = _PlainDisplay(output)
            ended = session.run(opened, plain, trainer=trainer, designer=designer, grace_seconds=grace_seconds)
    finally:
        logger.removeHandler(handler)

    output.print()
    report = ended.report
    if ended.ending is not Ending.DONE or report.stage == "Suspended":
        output.print(render_trials(report))
        why = "spec.suspend is true" if ended.ending is Ending.DONE else "stopped"
        _say(output, f"{report.study.name} is not complete ({why}); the same command goes on where it was")
        return INTERRUPTED
    if ended.has_failed:
        if report.trials:
            output.print(render_trials(report))
        _say(output, f"{report.study.name} failed: {report.message}")
        _say(output, f"logs: {opened.workspace.directory / 'logs'}; to begin anew, delete {opened.workspace.directory}")
        return FAILED
    print_report(output, report)
    return COMPLETE


class _LiveDisplay(Display):
    """A table that is drawn again every second."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, snapshot: Callable[[], Snapshot]) -> None:
        self._live.update(render_live(snapshot()), refresh=True)

    def say(self, sentence: str) -> None:
        _say(self._live.console, sentence)


class _PlainDisplay(Display):
    """Lines: the log's, and once a minute how far the trials are."""

    def __init__(self, output: Console) -> None:
        self._output = output
        self._last = time.monotonic()

    def show(self, snapshot: Callable[[], Snapshot]) -> None:
        if time.monotonic() - self._last >= PROGRESS_LINE_SECONDS:
            self._last = time.monotonic()
            for line in lines_of_progress(snapshot()):
                _say(self._output, _timed(line))

    def say(self, sentence: str) -> None:
        _say(self._output, sentence)


class _ConsoleHandler(logging.Handler):
    """Prints log records above the live table, or as lines of their own."""

    def __init__(self, output: Console) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        _say(self._output, _timed(prefix + record.getMessage()))


def _timed(line: str) -> str:
    return f"{time.strftime('%H:%M:%S')} {line}"


def _say(output: Console, line: str) -> None:
    output.print(Text(line), soft_wrap=True)


# --- plan -------------------------------------------------------------------------------------------------------


def _plan(opened: Opened, output: Console, trainer: Sequence[str], *, is_calibrating: bool) -> int:
    if is_calibrating:
        _print_plan(output, opened, *session.calibrate(opened, trainer=trainer))
    else:
        _print_plan(output, opened, session.read_summary(opened), None)
    # The arithmetic needs none of them, but `run` would refuse the study.
    missing = session.name_missing_paths(opened)
    for sentence in missing:
        print(f"finetune-study: {sentence}", file=sys.stderr)
    return UNUSABLE if missing and not session.may_be_for_pods(opened.study) else COMPLETE


def _print_plan(
    output: Console, opened: Opened, summary: DatasetSummary | None, calibration: Calibration | None
) -> None:
    study = opened.study
    plan = build_plan(study, summary, calibration)
    _say(output, describe_rungs(study))
    if study.baseline is None:
        _say(output, "no `spec.baseline`: the report tells no gain over what you would have typed")
    for line in describe_first_arms(study):
        _say(output, line)
    output.print(_plan_table(plan))
    again = sum(study.count_continuing(study.num_trials))
    _say(
        output,
        f"training of the search alone: {plan.training_passes:g} passes over the training set instead of "
        f"{plan.full_passes:g} ({max(0.0, plan.saved_training_share):.0%} less); less time is saved, because trials "
        f"start and evaluate again {again} times",
    )
    if sentence := describe_another_rung(study, opened.raw):
        _say(output, sentence)
    for line in describe_teacher(study, summary, session.count_records(opened)):
        _say(output, line)
    for line in filter(None, (describe_confirmations(study), describe_curve(study))):
        _say(output, line)
    if summary is not None:
        for line in describe_steps(study, summary):
            _say(output, line)
    if plan.seconds is None or plan.wall_seconds is None:
        _say(output, "how long that takes on this machine: `finetune-study plan --calibrate` measures it")
        return
    for phase in plan.phases:
        _say(output, f"{phase.name}: {phase.arithmetic} = {duration(phase.seconds or 0)}")
    hours = plan.seconds * study.accelerators / 3600
    _say(
        output,
        f"in all about {duration(plan.wall_seconds)}, {hours:.2f} accelerator-hours, after the data is prepared",
    )
    if plan.spent_seconds is not None and plan.saved_seconds is not None:
        spent, saved = (seconds * study.accelerators / 3600 for seconds in (plan.spent_seconds, plan.saved_seconds))
        _say(
            output,
            f"as the report counts, before the final evaluation: {describe_hours(spent)} spent, "
            f"{describe_saved(saved)}",
        )
    limit = study.budget.accelerator_hours
    if limit is not None and hours > limit:
        fewer = "fewer trials, confirmations or runs of the data curve" if study.extra_runs else "fewer trials"
        _say(output, f"that is more than `spec.budget.acceleratorHours` ({limit:g}): {fewer} will be run")


def _plan_table(plan: Plan) -> Table:
    table = Table()
    table.add_column("phase")
    for column in ("jobs", "training passes", "validation measurements", "test measurements", "time"):
        table.add_column(column, justify="right")
    for phase in plan.phases:
        table.add_row(
            phase.name,
            str(phase.jobs),
            "" if phase.training_passes is None else f"{phase.training_passes:.4g}",
            str(phase.validation_passes),
            str(phase.test_passes),
            "" if phase.seconds is None else duration(phase.seconds),
        )
    return table


# --- trials, report ---------------------------------------------------------------------------------------------


def _show_trials(opened: Opened, output: Console, form: str) -> int:
    seen = session.look(opened)
    if form == "json":
        print(json.dumps(render_json(seen.report)["trials"], indent=1))
    else:
        output.print(render_live(seen.snapshot))
    return COMPLETE


def _ask(opened: Opened, output: Console, arguments: argparse.Namespace, trainer: Sequence[str]) -> int:
    def say(sentence: str) -> None:
        # For somebody who waits; a program does not read it.
        if sys.stderr.isatty():
            print(sentence, file=sys.stderr, flush=True)

    answered = session.ask(
        opened, arguments.files, attributes=arguments.attribute, url=arguments.url, say=say, trainer=trainer
    )
    limit = f"`spec.trainer.maxLengthTokens` ({opened.study.trainer.max_length_tokens})"
    for name, answer in answered.items():
        if answer.is_cut:
            sentence = f"warning: {name} is longer than {limit} allows; only a part of it was read"
            print(f"finetune-study: {sentence}", file=sys.stderr)
    found = {name: answer.values for name, answer in answered.items()}
    if arguments.format == "json":
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return COMPLETE
    table = Table("")
    for name in found:
        table.add_column(Text(name))
    for attribute in next(iter(found.values())):
        # What a model answers may hold anything; as Text it is no markup.
        table.add_row(Text(attribute), *(Text(values[attribute] or "–") for values in found.values()))
    output.print(table)
    return COMPLETE


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= LAST_PORT):
        raise argparse.ArgumentTypeError(f"must be a number from 0 to {LAST_PORT}, got {text!r}")
    return int(text)


def _watch(output: Console, arguments: argparse.Namespace) -> int:
    if "://" in arguments.study:
        source: Source = open_prefix(arguments.study)
    else:
        source = find_source(session.open_manifest(Path(arguments.study), arguments.directory))
    serve(source, arguments.port, lambda sentence: _say(output, sentence))
    return COMPLETE


def _show_report(opened: Opened, output: Console, form: str) -> int:
    report = session.look(opened).report
    if form == "json":
        print(json.dumps(render_json(report), indent=1))
    else:
        print_report(output, report)
    return COMPLETE


if __name__ == "__main__":
    sys.exit(main())
