"""Resuming equals not having stopped: to the bit, in losses, weights, moments and the final measurement."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from builders import tiny_study
from builders.tiny_study import Trainer, digest, wait_until, with_processes
from trial_trainer.contract import TRIAL_CONFIG, ExitCode, RungMeasurement, TrialConfig, from_json, to_json
from trial_trainer.errors import StudyError
from trial_trainer.stop import StopRequest
from trial_trainer.training.train import train

both = pytest.mark.parametrize("processes", [1, 2], ids=["one process", "two ranks"])


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> TrialConfig:
    config = tiny_study.build_study(tmp_path_factory.mktemp("study"))
    assert config.arm["lora_dropout"] > 0
    return config


class StopAfter(StopRequest):
    """Requested once it was asked so many times: after that many steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps
        super().__init__()

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left < 0

    @requested.setter
    def requested(self, value: bool) -> None:
        assert value is False

    def release(self) -> None:
        """Go on: the process is the tests' own."""


def never() -> StopRequest:
    return StopRequest()


def outcome(config: TrialConfig) -> dict:
    """Return all that must be equal: nothing of time, and not the attempt's name."""
    output = Path(config.output)
    measurement = from_json(RungMeasurement, (output / "measurement.json").read_bytes())
    checkpoint = output / measurement.checkpoint
    state = json.loads((checkpoint / "state.json").read_bytes())
    return {
        "step": measurement.step,
        "samples": measurement.samples_seen,
        "metrics": measurement.metrics,
        "losses": (state["untrained"], state["losses"]),
        "adapter": digest(output / "adapter" / "adapter_model.safetensors"),
        "weights": digest(checkpoint / "adapter.safetensors"),
        "moments": digest(checkpoint / "optimizer.safetensors"),
        "predictions": digest(output / "predictions.jsonl"),
        "written losses": json.loads((output / "training-losses.json").read_bytes()),
    }


@pytest.fixture(scope="module")
def straight(study, tmp_path_factory) -> dict:
    config = replace(study, output=str(tmp_path_factory.mktemp("straight")))
    assert train(config, never()) == ExitCode.STOP_STEP_REACHED
    found = outcome(config)
    assert found["step"] == 20 and len(found["written losses"]) == 20
    return found


@pytest.mark.parametrize("early", [1, 4, 7, 19], ids=lambda step: f"after step {step}")
def test_an_early_measurement_and_its_continuation_equal_the_straight_run(study, straight, tmp_path, early) -> None:
    first = replace(study, output=str(tmp_path / "first"), stop_step=early)
    second = replace(study, output=str(tmp_path / "second"), rung=1, resume_from=first.output)
    assert train(first, never()) == ExitCode.STOP_STEP_REACHED
    assert from_json(RungMeasurement, Path(first.output, "measurement.json").read_bytes()).step == early
    assert train(second, never()) == ExitCode.STOP_STEP_REACHED
    assert outcome(second) == straight


def test_a_run_over_three_rungs_equals_the_straight_run(study, straight, tmp_path) -> None:
    before = None
    for rung, end in enumerate((1, 4, 20)):
        config = replace(study, output=str(tmp_path / str(rung)), rung=rung, stop_step=end, resume_from=before)
        assert train(config, never()) == ExitCode.STOP_STEP_REACHED
        before = config.output
    assert outcome(config) == straight


def test_a_measurement_says_how_many_steps_its_seconds_of_training_are_of(study, tmp_path) -> None:
    config = replace(study, output=str(tmp_path / "output"), stop_step=7)
    assert train(config, StopAfter(4)) == ExitCode.ASKED_TO_STOP
    assert train(config, never()) == ExitCode.STOP_STEP_REACHED
    measurement = from_json(RungMeasurement, Path(config.output, "measurement.json").read_bytes())
    assert measurement.trained_steps is not None and 0 < measurement.trained_steps < measurement.step == 7
    assert measurement.seconds["train"] > 0


def test_extra_measurements_on_the_way_change_nothing(study, straight, tmp_path) -> None:
    config = replace(study, output=str(tmp_path / "output"), evaluate_at_steps=(3, 11))
    train(config, never())
    assert {path.name for path in Path(config.output, "measurements").iterdir()} == {"3.json", "11.json"}
    assert outcome(config) == straight


def test_any_number_of_stops_changes_nothing(study, straight, tmp_path) -> None:
    config = replace(study, output=str(tmp_path / "output"))
    stops = 0
    while train(config, StopAfter(random.choice([0, 1, 4]))) == ExitCode.ASKED_TO_STOP:
        stops += 1
        assert not Path(config.output, "measurement.json").exists()
    assert stops >= 3
    assert outcome(config) == straight


def test_a_damaged_newest_checkpoint_is_passed_over(study, straight, tmp_path) -> None:
    config = replace(study, output=str(tmp_path / "output"))
    assert train(config, StopAfter(5)) == ExitCode.ASKED_TO_STOP
    assert train(config, StopAfter(5)) == ExitCode.ASKED_TO_STOP
    older, newest = sorted(Path(config.output, "checkpoints").iterdir())
    weights = newest / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert older.name < newest.name
    assert train(config, never()) == ExitCode.STOP_STEP_REACHED
    assert outcome(config) == straight


def test_another_dropout_mask_would_have_been_seen(study, straight, tmp_path) -> None:
    config = replace(study, output=str(tmp_path / "output"), seed=1)
    train(config, never())
    assert outcome(config)["weights"] != straight["weights"]


def another_arm(config: TrialConfig) -> TrialConfig:
    return replace(config, arm={**config.arm, "learning_rate": 7e-4}, digest="another")


def test_another_arms_measurement_and_checkpoints_are_said_and_replaced(study, straight, tmp_path, caplog) -> None:
    config = replace(study, output=str(tmp_path / "output"), digest="ours")
    assert train(another_arm(config), never()) == ExitCode.STOP_STEP_REACHED
    assert from_json(RungMeasurement, Path(config.output, "measurement.json").read_bytes()).digest == "another"
    assert train(config, never()) == ExitCode.STOP_STEP_REACHED
    assert from_json(RungMeasurement, Path(config.output, "measurement.json").read_bytes()).digest == "ours"
    assert outcome(config) == straight
    assert "measurement.json of " in caplog.text
    assert "does not count: its digest must be 'ours', got 'another'" in caplog.text
    assert "belongs to another run and is passed over: arm must be" in caplog.text


def test_a_promoted_trial_whose_checkpoint_is_another_arms_begins_at_its_first_step(
    study, straight, tmp_path, caplog
) -> None:
    first = replace(study, output=str(tmp_path / "first"), stop_step=4, digest="ours")
    second = replace(study, output=str(tmp_path / "second"), rung=1, resume_from=first.output, digest="ours")
    train(another_arm(first), never())
    assert train(second, never()) == ExitCode.STOP_STEP_REACHED
    assert f"{first.output} has no whole checkpoint of this run, which begins at its first step" in caplog.text
    measurement = from_json(RungMeasurement, Path(second.output, "measurement.json").read_bytes())
    assert measurement.trained_steps == measurement.step == 20
    assert outcome(second) == straight


def test_a_dataset_that_is_another_one_by_now_is_refused(study, tmp_path) -> None:
    config = replace(study, output=str(tmp_path / "output"), dataset_fingerprint="00ff")
    with pytest.raises(StudyError, match=r"TrialConfig.dataset must be the dataset with the fingerprint '00ff', got"):
        train(config, never())


def test_a_checkpoint_of_another_number_of_ranks_is_passed_over(study, straight, tmp_path, caplog) -> None:
    config = replace(study, output=str(tmp_path / "output"))
    assert train(config, StopAfter(2)) == ExitCode.ASKED_TO_STOP
    (state,) = Path(config.output).glob("checkpoints/*/state.json")
    document = json.loads(state.read_bytes())
    document["identity"]["ranks"] = 2
    state.write_text(json.dumps(document))
    manifest = json.loads((state.parent / "manifest.json").read_bytes())
    manifest["sha256"]["state.json"] = digest(state)
    (state.parent / "manifest.json").write_text(json.dumps(manifest))
    assert train(config, never()) == ExitCode.STOP_STEP_REACHED
    assert "ranks must be 1, got 2" in caplog.text
    assert outcome(config) == straight


@pytest.mark.slow
@both
def test_processes_that_are_stopped_and_continued_equal_the_straight_run(study, tmp_path, processes) -> None:
    steps = 150
    whole = replace(with_processes(study, processes), total_steps=steps, stop_step=steps, rung=1)
    straight = replace(whole, output=str(tmp_path / "straight"))
    early = replace(whole, output=str(tmp_path / "early"), stop_step=steps // 5 + 1, rung=0)
    promoted = replace(
        whole,
        output=str(tmp_path / "promoted"),
        resume_from=early.output,
        progress=str(tmp_path / "progress.json"),
    )
    run_to_its_end(straight)
    run_to_its_end(early)
    stopped = Trainer(promoted)
    wait_until(Path(promoted.progress).exists)
    time.sleep(random.uniform(0, 0.5))
    stopped.process.send_signal(signal.SIGTERM)
    ended = stopped.wait()
    assert ended.code == ExitCode.ASKED_TO_STOP, ended
    assert not ended.orphans
    assert re.search(r"asked to stop at step \d+ of 150: checkpoints/\S+ is saved", ended.errors), ended
    assert not Path(promoted.output, "measurement.json").exists()
    assert list(Path(promoted.output).glob("checkpoints/*/manifest.json"))
    run_to_its_end(promoted)
    assert outcome(promoted) == outcome(straight)


STOPPED_IN_ITS_EVALUATION = """
import os, signal, sys
from trial_trainer import __main__
from trial_trainer.training import train

def predict(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("it goes on")

train.predict = predict
sys.exit(__main__.main([]))
"""


@pytest.mark.slow
def test_a_stop_in_the_last_evaluation_ends_at_once_and_the_next_attempt_reads_on(study, straight, tmp_path) -> None:
    config = replace(study, output=str(tmp_path / "output"))
    environment = tiny_study.clean_environment() | {TRIAL_CONFIG: to_json(config)}
    command = [sys.executable, "-c", STOPPED_IN_ITS_EVALUATION]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == ExitCode.ASKED_TO_STOP, ended.stderr
    assert not Path(config.output, "measurement.json").exists()
    (checkpoint,) = Path(config.output).glob("checkpoints/*/manifest.json")
    assert checkpoint.parent.name.startswith("000020-")
    run_to_its_end(config)
    assert outcome(config) == straight


def run_to_its_end(config: TrialConfig) -> None:
    ended = Trainer(config).wait()
    assert ended.code == ExitCode.STOP_STEP_REACHED, ended
    assert not ended.orphans
