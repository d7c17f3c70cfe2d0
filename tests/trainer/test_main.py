"""The trainer at its process boundary: exit codes, sentences, signals, and that nobody is left behind."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from builders import tiny_study
from builders.tiny_study import Trainer, wait_until, with_processes
from trial_trainer import contract
from trial_trainer.artifacts import ArtifactError
from trial_trainer.contract import MEASUREMENT, ContractError, ExitCode, TrialConfig, to_json
from trial_trainer.errors import ArmError, Diverged, StudyError, TrainerError
from trial_trainer.process.ranks import End, decide

both = pytest.mark.parametrize("processes", [1, 2], ids=["one process", "two ranks"])


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> TrialConfig:
    return tiny_study.build_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def trial(study, tmp_path) -> TrialConfig:
    return replace(study, output=str(tmp_path / "output"), progress=str(tmp_path / "progress.json"))


def run(config: TrialConfig, **environment: str) -> tiny_study.Ended:
    ended = Trainer(config, **environment).wait()
    assert not ended.orphans
    return ended


def last_line(errors: str) -> str:
    return errors.strip().splitlines()[-1]


# Before anything heavy is imported ------------------------------------------------------------------------------------

LIGHTLY = """
import sys
from trial_trainer.__main__ import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "accelerate", "boto3", "lxml", "pyarrow"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


def run_lightly(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point in a process that ends with 1 if it imported anything heavy."""
    return subprocess.run(
        [sys.executable, "-c", LIGHTLY, *arguments],
        env=tiny_study.clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        pytest.param(
            [], {}, "TRIAL_CONFIG must hold a TrialConfig as JSON, or the argument name a file", id="no trial"
        ),
        pytest.param(["prepare"], {}, "PREPARE_CONFIG must hold a PrepareConfig as JSON", id="nothing to prepare"),
        pytest.param(
            ["final-evaluation"],
            {},
            "FINAL_EVALUATION_CONFIG must hold a FinalEvaluationConfig as JSON",
            id="nothing to evaluate",
        ),
        pytest.param(["calibrate"], {}, "TRIAL_CONFIG must hold a TrialConfig as JSON", id="nothing to calibrate"),
        pytest.param([], {"TRIAL_CONFIG": "{"}, "TrialConfig must be JSON", id="half a document"),
        pytest.param([], {"TRIAL_CONFIG": "[]"}, "TrialConfig must be an object, got []", id="a list"),
        pytest.param(
            [], {"TRIAL_CONFIG": "{}"}, "TrialConfig.study must be given; TrialConfig.trial", id="all missing"
        ),
        pytest.param(
            ["tarin"], {}, "must be one of prepare, final-evaluation, calibrate or a file", id="a misspelt command"
        ),
        pytest.param(["/"], {}, "got '/': Is a directory", id="a directory as file"),
        pytest.param(["prepare", "a", "b"], {}, "must be at most one of prepare", id="two files"),
    ],
)
def test_bad_input_is_the_studys_fault_and_answered_in_one_sentence(arguments, environment, sentence) -> None:
    ended = run_lightly(*arguments, **environment)
    assert ended.returncode == ExitCode.STUDY_CANNOT_RUN
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_every_wrong_field_is_named_at_once(study) -> None:
    document = json.loads(to_json(study)) | {"seed": "0", "stopstep": 3}
    ended = run_lightly(TRIAL_CONFIG=json.dumps(document))
    assert ended.returncode == ExitCode.STUDY_CANNOT_RUN
    assert "TrialConfig.seed must be a whole number, got '0'" in ended.stderr
    assert "TrialConfig.stopstep is not a field" in ended.stderr


def test_what_a_later_operator_adds_to_a_configuration_is_passed_over_and_said(trial) -> None:
    Path(trial.output).mkdir()
    (Path(trial.output) / MEASUREMENT).write_text("{}")
    document = json.loads(to_json(trial)) | {"later": {"a": 1}}
    document["trainer"]["newer"] = True
    ended = run_lightly(TRIAL_CONFIG=json.dumps(document))
    assert ended.returncode == ExitCode.STOP_STEP_REACHED
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.endswith(
        "passed over, because this trainer does not know it: TrialConfig.later, TrialConfig.trainer.newer\n"
    )


def test_another_version_of_the_contract_is_refused(study) -> None:
    ended = run_lightly(TRIAL_CONFIG=to_json(replace(study, contract_version=1)))
    assert (ended.returncode, last_line(ended.stderr)) == (
        12,
        "TrialConfig.contract_version must be 2, got 1: the operator and the trainer's image must be of one release",
    )


def test_a_store_of_an_unknown_scheme_is_the_environments_fault(study) -> None:
    ended = run_lightly(TRIAL_CONFIG=to_json(replace(study, output="gopher://bucket")))
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "the storage URI must start with s3:// or file://" in ended.stderr


@both
def test_a_measurement_that_is_there_ends_it_before_torch_is_imported(trial, processes) -> None:
    Path(trial.output).mkdir()
    (Path(trial.output) / MEASUREMENT).write_text("{}")
    ended = run_lightly(TRIAL_CONFIG=to_json(with_processes(trial, processes)))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_configuration_may_be_a_file(trial, tmp_path) -> None:
    Path(trial.output).mkdir()
    (Path(trial.output) / MEASUREMENT).write_text("{}")
    (tmp_path / "trial.json").write_text(to_json(trial))
    assert run_lightly(str(tmp_path / "trial.json")).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@both
def test_a_stop_before_training_ends_at_once_and_writes_nothing(trial, processes, number) -> None:
    trainer = Trainer(with_processes(trial, processes))
    # The library is mapped while `import torch` runs; of two ranks the launcher imports it first.
    wait_until(lambda: any("libtorch" in maps_of(process) for process in trainer.processes()))
    asked_at = time.monotonic()
    trainer.process.send_signal(number)
    ended = trainer.wait()
    assert ended.code == ExitCode.ASKED_TO_STOP, ended
    assert time.monotonic() - asked_at < tiny_study.PATIENCE_SECONDS / 10
    assert not ended.orphans
    assert not Path(trial.output).exists()


def maps_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def test_the_first_process_of_a_container_can_be_stopped(study, tmp_path) -> None:
    # The kernel drops SIGTERM for a process 1 without a handler. Here it is sent from inside its own namespace.
    script = textwrap.dedent(
        """
        import os, signal, threading
        from trial_trainer.stop import StopRequest
        stop = StopRequest().install()
        assert os.getpid() == 1
        stop.protect()
        os.kill(1, signal.SIGTERM)
        assert stop.requested
        """
    )
    command = ["unshare", "--user", "--pid", "--fork", sys.executable, "-c", script]
    assert subprocess.run(command, env=tiny_study.clean_environment(), timeout=60, check=False).returncode == 0


# What a trial ends with -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@both
@pytest.mark.parametrize(
    ("changes", "code", "sentence"),
    [
        # Norms keep such a model's loss in bounds until its weights overflow.
        pytest.param({"arm": {"learning_rate": 1e30}}, ExitCode.DIVERGED, "the loss of step", id="diverged"),
        pytest.param(
            {"trainer": {"target_modules": ("no_such_module",)}},
            ExitCode.ARM_CANNOT_RUN,
            "no_such_module",
            id="unknown target modules",
        ),
        pytest.param({"arm": {"lora_rank": 10**11}}, ExitCode.ARM_CANNOT_RUN, "memory", id="more memory than there is"),
        pytest.param({"dataset": "/nowhere"}, ExitCode.STUDY_CANNOT_RUN, "/nowhere", id="no dataset"),
    ],
)
def test_the_exit_code_says_whose_fault_it_was(trial, processes, changes, code, sentence) -> None:
    arm = {**trial.arm, **changes.get("arm", {})}
    settings = replace(trial.trainer, **changes.get("trainer", {}))
    config = replace(trial, arm=arm, trainer=settings, dataset=changes.get("dataset", trial.dataset))
    ended = run(with_processes(config, processes), TRIAL_ATTEMPT="pod-1")
    assert ended.code == code, ended
    assert sentence in last_line(ended.errors)
    assert "Traceback" not in ended.errors
    assert not (Path(trial.output) / MEASUREMENT).exists()
    # The pod goes, and its log with it.
    assert sentence in last_line((Path(trial.output) / "logs/pod-1.txt").read_text())


@pytest.mark.slow
@both
def test_a_missing_model_is_the_studys_fault(trial, processes) -> None:
    ended = run(with_processes(replace(trial, base_model=contract.BaseModel(uri="/nowhere")), processes))
    assert ended.code == ExitCode.STUDY_CANNOT_RUN, ended
    assert last_line(ended.errors) == "base_model.uri must be a directory with a config.json, got '/nowhere'"


@pytest.mark.slow
def test_a_killed_rank_is_the_environments_fault(trial) -> None:
    trainer = Trainer(with_processes(long(trial), 2))
    wait_until(Path(trial.progress).exists)
    os.kill(random.choice(trainer.ranks()), signal.SIGKILL)
    ended = trainer.wait()
    assert ended.code == 1, ended
    assert not ended.orphans


@pytest.mark.slow
def test_ranks_do_not_outlive_a_parent_that_was_killed(trial) -> None:
    trainer = Trainer(with_processes(long(trial), 2))
    wait_until(Path(trial.progress).exists)
    assert len(trainer.ranks()) == 2
    trainer.process.kill()
    wait_until(lambda: not trainer.processes())
    trainer.wait()


def long(config: TrialConfig) -> TrialConfig:
    return replace(config, total_steps=100_000, stop_step=100_000)


# Which code stands for all ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "asked_to_stop", "expected"),
    [
        pytest.param([0, 0], False, 0, id="all reached the stop step"),
        pytest.param([0], False, 1, id="one vanished after its mate was done"),
        pytest.param([], False, 1, id="all vanished"),
        pytest.param([1, 11], False, 11, id="who knows whose fault it was outweighs a broken collective"),
        pytest.param([10, 11], False, 10, id="the first to fail decides"),
        pytest.param([12, 143], True, 12, id="a fault outweighs a request"),
        pytest.param([143, 143], True, 143, id="all saved"),
        pytest.param([0, 143], True, 143, id="asked in the last step"),
        pytest.param([0, 0], True, 0, id="asked too late"),
        pytest.param([], True, 143, id="asked before training"),
        pytest.param([143, 143], False, 1, id="stopped by something else than a request to us"),
        pytest.param([1, 1], True, 1, id="asked, and nothing was saved"),
    ],
)
def test_one_exit_code_stands_for_all_ranks(codes, asked_to_stop, expected) -> None:
    ends = [End(rank=rank, code=code) for rank, code in enumerate(codes)]
    assert decide(ends, 2, asked_to_stop=asked_to_stop) == expected


@pytest.mark.parametrize(
    ("error", "code"),
    [(Diverged, 10), (ArmError, 11), (StudyError, 12), (TrainerError, 1), (ContractError, 12), (ArtifactError, 1)],
)
def test_each_named_error_has_its_exit_code(monkeypatch, capsys, error, code) -> None:
    from trial_trainer import __main__ as entry

    def fail(*_: object) -> int:
        raise error("a sentence")

    monkeypatch.setattr(entry, "_run", fail)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert entry.main([]) == code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == "a sentence\n"


def test_of_a_fault_that_nobody_foresaw_the_trace_is_kept_and_a_bucket_that_takes_no_log_changes_nothing(
    monkeypatch, capsys, tmp_path
) -> None:
    from trial_trainer import __main__ as entry

    def fail(_arguments: object, _stop: object, _speaker: object, tail: entry.LogTail) -> int:
        tail.keep_under(str(prefix))
        raise ZeroDivisionError("nobody foresaw it")

    monkeypatch.setattr(entry, "_run", fail)
    monkeypatch.setenv(contract.ATTEMPT, "pod-1")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for place in (tmp_path, tmp_path / "logs/pod-1.txt"):
            prefix = place
            with pytest.raises(ZeroDivisionError):
                entry.main([])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    lines = (tmp_path / "logs/pod-1.txt").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "ZeroDivisionError: nobody foresaw it")
    assert capsys.readouterr().err == ""
