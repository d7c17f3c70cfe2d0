"""One trial on two nodes, which are two processes of this machine that meet as pods of an Indexed Job do."""

import json
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from builders import tiny_study
from builders.tiny_study import Ended, Trainer, wait_until, with_processes
from trial_trainer.contract import MASTER_ADDRESS, MASTER_PORT, MEASUREMENT, NODE_INDEX, ExitCode, TrialConfig, to_json
from trial_trainer.process.ranks import End, decide

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> TrialConfig:
    return tiny_study.build_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def trial(study, tmp_path) -> TrialConfig:
    return replace(study, output=str(tmp_path / "output"), progress=str(tmp_path / "progress.json"))


def on_two_nodes(config: TrialConfig) -> TrialConfig:
    return replace(config, trainer=replace(config.trainer, nodes=2))


def long(config: TrialConfig) -> TrialConfig:
    return replace(config, total_steps=100_000, stop_step=100_000)


def start(config: TrialConfig) -> list[Trainer]:
    """Start both nodes, each told what its pod would be told."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meeting = {MASTER_ADDRESS: "127.0.0.1", MASTER_PORT: port, "GLOO_SOCKET_IFNAME": "lo"}
    return [Trainer(on_two_nodes(config), **meeting, **{NODE_INDEX: str(index)}) for index in range(2)]


def wait(nodes: list[Trainer]) -> list[Ended]:
    ended = [node.wait() for node in nodes]
    assert not [process for end in ended for process in end.orphans]
    return ended


def read_measures(output: str) -> dict[str, object]:
    measurement = json.loads((Path(output) / MEASUREMENT).read_bytes())
    return {name: measurement[name] for name in ("step", "metrics", "samples_seen")}


def test_two_nodes_read_what_two_processes_of_one_node_read(trial, tmp_path) -> None:
    assert [end.code for end in wait(start(trial))] == [0, 0]

    other = replace(trial, output=str(tmp_path / "one-node"))
    assert Trainer(with_processes(other, 2)).wait().code == 0
    assert read_measures(trial.output) == read_measures(other.output)


def test_a_node_that_is_asked_to_stop_stops_all_with_one_checkpoint(trial) -> None:
    nodes = start(long(trial))
    wait_until(Path(trial.progress).exists)
    nodes[1].process.send_signal(signal.SIGTERM)
    ended = wait(nodes)
    assert [end.code for end in ended] == [ExitCode.ASKED_TO_STOP] * 2, ended
    assert len(list(Path(trial.output).glob("checkpoints/*/manifest.json"))) == 1


def test_a_node_that_dies_ends_the_others(trial) -> None:
    nodes = start(long(trial))
    wait_until(Path(trial.progress).exists)
    for process in nodes[1].processes():
        os.kill(process, signal.SIGKILL)
    ended = wait(nodes)
    assert ended[0].code == 1, ended


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        pytest.param({}, "JOB_COMPLETION_INDEX must be from 0 to 1 on 2 nodes, got ''", id="no index"),
        pytest.param({NODE_INDEX: "2"}, "JOB_COMPLETION_INDEX must be from 0 to 1 on 2 nodes, got '2'", id="a third"),
        pytest.param(
            {NODE_INDEX: "0", MASTER_ADDRESS: "first"},
            "MASTER_ADDR and MASTER_PORT must say where the first of 2 nodes is met, got 'first' and ''",
            id="no port",
        ),
    ],
)
def test_a_node_that_does_not_know_its_place_says_what_it_must_be_told(trial, environment, sentence) -> None:
    ended = Trainer(to_json(on_two_nodes(trial)), **environment).wait()
    assert (ended.code, ended.errors.strip().splitlines()[-1]) == (1, sentence)


def test_a_node_that_was_not_asked_itself_has_stopped_as_agreed() -> None:
    ends = [End(rank=0, code=143), End(rank=1, code=143)]
    assert decide(ends, 2, asked_to_stop=False, is_one_of_many=True) == ExitCode.ASKED_TO_STOP
    assert decide(ends[:1], 2, asked_to_stop=False, is_one_of_many=True) == 1
