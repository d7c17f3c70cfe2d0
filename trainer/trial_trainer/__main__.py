"""The container's entry point: `python -m trial_trainer [prepare|final-evaluation|calibrate] [CONFIG.json]`.

Reads one configuration, from a file or from the environment (`TRIAL_CONFIG`, `PREPARE_CONFIG`,
`FINAL_EVALUATION_CONFIG`), does what it orders, and ends with an exit code of the contract. The order of things here is
the point:

    handlers for SIGTERM → configuration → a measurement that exists ends it → several ranks → torch

so that a process can be stopped at any moment, and a wrong configuration is answered before anything heavy is imported.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from trial_trainer import contract
from trial_trainer.artifacts import ArtifactError, open_store
from trial_trainer.contract import ContractError, ExitCode, FinalEvaluationConfig, PrepareConfig, TrialConfig
from trial_trainer.cores import count_cores
from trial_trainer.errors import ENVIRONMENT, ArmError, TrainerError
from trial_trainer.process import ranks
from trial_trainer.process.log_tail import LogTail
from trial_trainer.results import is_there
from trial_trainer.stop import StopRequest

log = logging.getLogger("trial_trainer")

COMMANDS = ("prepare", "final-evaluation", "calibrate")

T = TypeVar("T")


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments and the environment order; return the exit code of the contract."""
    speaker = _Speaker()
    stop = StopRequest(before_leaving=speaker.say_end).install()
    tail = LogTail()
    _configure_logs(tail)
    try:
        code, sentence = _run(arguments, stop, speaker, tail), ""
    except (TrainerError, ContractError, ArtifactError) as error:
        code, sentence = _code_of(error), str(error)
    except BaseException:
        tail.add(traceback.format_exc())
        tail.write(has_failed=True)
        raise
    tail.add(sentence)
    tail.write(has_failed=code != ExitCode.STOP_STEP_REACHED)
    # Last, because the last line is what a person reads in the study's status.
    speaker.say_end(code, sentence)
    return code


class _Speaker:
    """Says how this process ended: a rank to its parent, any other on stderr."""

    def __init__(self) -> None:
        self.membership: ranks.Membership | None = None

    def say_end(self, code: int, sentence: str = "") -> None:
        if self.membership is not None:
            self.membership.tell_end(code, sentence)
        elif sentence:
            print(sentence, file=sys.stderr, flush=True)


def _run(arguments: Sequence[str], stop: StopRequest, speaker: _Speaker, tail: LogTail) -> int:
    if arguments[:1] == ["ask"]:
        # For people: it has flags, and no configuration.
        _ask(arguments[1:])
        return ExitCode.STOP_STEP_REACHED
    command, path = _read_arguments(arguments)
    match command:
        case "prepare":
            preparation = _read(PrepareConfig, contract.PREPARE_CONFIG, path)
            tail.keep_under(preparation.dataset)
            _prepare(preparation)
        case "final-evaluation":
            evaluating = _read(FinalEvaluationConfig, contract.FINAL_EVALUATION_CONFIG, path)
            tail.keep_under(evaluating.output)
            _run_final_evaluation(evaluating)
        case "calibrate":
            _calibrate(_read(TrialConfig, contract.TRIAL_CONFIG, path))
        case _:
            config = _read(TrialConfig, contract.TRIAL_CONFIG, path)
            # Of several ranks each tells its own.
            if ranks.is_rank() or config.trainer.ranks == 1:
                tail.keep_under(config.output)
            if ranks.is_rank():
                speaker.membership = ranks.join(config.trainer.ranks)
                return _train(config, stop, speaker.membership)
            if is_there(open_store(config.output), contract.MEASUREMENT, config.digest):
                return ExitCode.STOP_STEP_REACHED
            _share_cores(config.trainer.processes)
            if config.trainer.ranks > 1:
                stop.protect()
                return ranks.run_ranks(["trial_trainer", *arguments], config.trainer, stop)
            return _train(config, stop, None)
    return ExitCode.STOP_STEP_REACHED


def _configure_logs(tail: LogTail) -> None:
    """Log for a file: a line for each thing that was done, no bars. Of several ranks only the first says it."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, handlers=[logging.StreamHandler(), tail]
    )
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("trial_trainer").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _read_arguments(arguments: Sequence[str]) -> tuple[str | None, str | None]:
    """Split the arguments into a command and the path of a configuration."""
    rest = list(arguments)
    command = rest.pop(0) if rest and rest[0] in COMMANDS else None
    if len(rest) > 1:
        raise ContractError(
            f"the arguments must be at most one of {', '.join(COMMANDS)} and one configuration file, "
            f"got {' '.join(arguments)!r}"
        )
    return command, rest[0] if rest else None


def _read(cls: type[T], variable: str, path: str | None) -> T:
    """Read a configuration; what an operator of a later release has added to it is passed over."""
    ignored: list[str] = []
    config = contract.from_json(cls, _read_text(cls, variable, path), ignored=ignored)
    if ignored:
        log.info("passed over, because this trainer does not know it: %s", ", ".join(ignored))
    return config


def _read_text(cls: type, variable: str, path: str | None) -> str | bytes:
    if path is None:
        text = os.environ.get(variable)
        if text is None:
            raise ContractError(f"{variable} must hold a {cls.__name__} as JSON, or the argument name a file of one")
        return text
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ContractError(
            f"the argument must be one of {', '.join(COMMANDS)} or a file with a {cls.__name__}, got {path!r}: "
            f"{error.strerror}"
        ) from error


def _share_cores(processes: int) -> None:
    """Give each process its share of the cores, unless somebody decided; torch reads this when it is imported."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // max(1, processes))))


# From here on heavy modules are imported, each where it is used. ------------------------------------------------------


def _train(config: TrialConfig, stop: StopRequest, membership: ranks.Membership | None) -> int:
    from trial_trainer.model.memory import is_out_of_memory
    from trial_trainer.training.train import train

    if membership is not None:
        membership.start_training()
    stop.protect()
    try:
        return train(config, stop)
    except (MemoryError, RuntimeError) as error:
        # Where a sample doesn't fit, the loop agrees with all ranks. This is the adapter, or the optimizer's moments.
        if not is_out_of_memory(error):
            raise
        raise ArmError(f"this arm does not fit into memory: {' '.join(str(error).split())}") from error


def _prepare(config: PrepareConfig) -> None:
    from trial_trainer.dataset.prepare import prepare

    prepare(config)


def _run_final_evaluation(config: FinalEvaluationConfig) -> None:
    _share_cores(1)
    from trial_trainer.evaluation.with_models import evaluate_with_models

    evaluate_with_models(config)


def _ask(arguments: Sequence[str]) -> None:
    _share_cores(1)
    from trial_trainer.extractor import main as ask

    ask(arguments)


def _calibrate(config: TrialConfig) -> None:
    _share_cores(config.trainer.processes)
    from trial_trainer.training.calibrate import calibrate

    print(json.dumps(calibrate(config), sort_keys=True), flush=True)


def _code_of(error: TrainerError | ContractError | ArtifactError) -> int:
    match error:
        case TrainerError():
            return error.exit_code
        case ContractError():
            return ExitCode.STUDY_CANNOT_RUN
        case _:
            return ENVIRONMENT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
