"""The optimizer's process: whatever it answers or dies of, its asker lives on, and the study says what is wrong."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.processes import is_alive
from builders.some_studies import a_study, a_trial, measured
from study_operator.metrics import Metrics
from study_operator.names import StudyKey
from study_operator.optimizer.designer import DesignerError, ProposalPendingError, Suggestion
from study_operator.optimizer.proposals import Proposals

KEY: StudyKey = ("shop", "laptop")

ANSWERS = """
import pickle, sys
from study_operator.optimizer.designer import Suggestion
while True:
    pickle.load(sys.stdin.buffer)
    pickle.dump({answer}, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


class Asker:
    """Asks for a study, and counts the news."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self.news = threading.Semaphore(0)
        self.proposals = Proposals(lambda _key: self.news.release(), Metrics(), command=command, retry_seconds=0.05)

    def ask(self) -> tuple[Suggestion, ...]:
        return self.proposals.of(KEY).suggest(a_study(), (), 1)

    def ask_until(self, sentence: str) -> None:
        """Ask until the wait is for a reason."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with pytest.raises(ProposalPendingError) as pending:
                self.ask()
            if sentence in str(pending.value):
                return
            assert self.news.acquire(timeout=30)
        pytest.fail(f"never said: {sentence}")


def a_worker(directory: Path, text: str) -> tuple[str, ...]:
    script = directory / "worker.py"
    script.write_text(text)
    return sys.executable, str(script)


@pytest.fixture(autouse=True)
def _packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))


@pytest.mark.parametrize(
    "text",
    [
        "raise SystemExit(1)",
        "import sys; sys.stdin.buffer.read(1); print('<html>', flush=True)",
        "import sys; sys.stdin.buffer.read(1); sys.stdout.buffer.write(bytes([128, 4, 140, 1]))",
        "import sys; sys.stdin.buffer.read(1); sys.stdout.buffer.write(b'cno.such.module\\nthing\\n.')",
        "import os; os.kill(os.getpid(), 9)",
    ],
    ids=["ends", "prints", "half an answer", "an answer of another version", "killed"],
)
def test_a_worker_that_dies_is_asked_again_and_the_study_says_so(tmp_path: Path, text: str) -> None:
    asker = Asker(a_worker(tmp_path, text))
    asker.ask_until("died over the next arm, 2 times so far")


def test_a_worker_that_cannot_be_started_is_started_when_it_can(tmp_path: Path) -> None:
    script = tmp_path / "later"
    asker = Asker((str(script),))
    asker.ask_until("2 times so far")
    script.write_text(f"#!{sys.executable}\n" + ANSWERS.format(answer="('problem', 'nothing is left')"))
    script.chmod(0o755)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert asker.news.acquire(timeout=60)
        with pytest.raises((ProposalPendingError, DesignerError)) as caught:
            asker.ask()
        if not isinstance(caught.value, ProposalPendingError):
            assert str(caught.value) == "nothing is left"
            return
    pytest.fail("never answered")


def test_an_answer_is_handed_out_as_it_was_given(tmp_path: Path) -> None:
    answer = "('arms', (Suggestion(arm={'batch_size': 8}, generation_node='Sobol'),))"
    asker = Asker(a_worker(tmp_path, ANSWERS.format(answer=answer)))
    with pytest.raises(ProposalPendingError) as pending:
        asker.ask()
    assert str(pending.value) == ""
    assert asker.news.acquire(timeout=60)
    assert asker.ask() == (Suggestion(arm={"batch_size": 8}, generation_node="Sobol"),)


READS = """
import pathlib, pickle, sys, time
from study_operator.optimizer.reading import ModelReading
from study_operator.optimizer.designer import Suggestion
while True:
    kind, study, trials, rest = pickle.load(sys.stdin.buffer)
    with open({log!r}, "a") as log:
        print(kind, len(trials), file=log)
    while not pathlib.Path({go!r}).exists():
        time.sleep(0.01)
    answer = ("arms", ()) if kind == "suggest" else ("reading", ModelReading(measured=len(trials), through=rest))
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""
ARM = {"batch_size": 8}


def read(asker: Asker, count: int, *, is_last: bool = False) -> int | None:
    """Ask for the model of so many trials; return of how many an answer is, None where it is not there yet."""
    trials = tuple(measured(a_trial(i), 0.1 * i) for i in range(count))
    try:
        return asker.proposals.of(KEY).read_model(a_study(), trials, ARM, is_last=is_last).measured
    except ProposalPendingError:
        return None


def test_a_reading_that_is_late_is_handed_out_once_and_at_the_end_only_that_of_the_last_ledger(tmp_path: Path) -> None:
    asker = Asker(a_worker(tmp_path, READS.format(log=str(tmp_path / "log"), go=str(tmp_path))))
    assert read(asker, 5) is None
    assert asker.news.acquire(timeout=60)
    # Meanwhile one more was measured: a study that measures quickly has a report all the same.
    assert read(asker, 6) == 5
    assert read(asker, 6) is None
    assert asker.news.acquire(timeout=60)
    assert read(asker, 7, is_last=True) is None
    assert asker.news.acquire(timeout=60)
    assert read(asker, 7, is_last=True) == read(asker, 7, is_last=True) == 7


def test_arms_are_proposed_before_a_model_is_read(tmp_path: Path) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    asker = Asker(a_worker(tmp_path, READS.format(log=str(log), go=str(go))))
    # While another study's question is thought about, two more come in.
    with pytest.raises(ProposalPendingError):
        asker.proposals.of(("shop", "other")).suggest(a_study(), (a_trial(0),), 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not log.exists():
        time.sleep(0.01)
    assert read(asker, 5) is None
    with pytest.raises(ProposalPendingError):
        asker.ask()
    go.touch()
    for _ in range(3):
        assert asker.news.acquire(timeout=60)
    assert log.read_text().splitlines() == ["suggest 1", "suggest 0", "read 5"]


def test_a_reading_over_which_the_worker_dies_is_a_problem_and_no_wait(tmp_path: Path) -> None:
    asker = Asker(a_worker(tmp_path, "raise SystemExit(1)"))
    assert read(asker, 5) is None
    assert asker.news.acquire(timeout=60)
    with pytest.raises(DesignerError, match="the optimizer's process died over it, "):
        read(asker, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_a_worker_that_imports_ax_does_not_outlive_an_operator_that_is_killed(tmp_path: Path) -> None:
    imports = a_worker(
        tmp_path,
        f"""
import pathlib, sys, time, types
def import_ax():
    pathlib.Path({str(tmp_path / "imports")!r}).touch()
    time.sleep(3600)
sys.modules["study_operator.optimizer.ax"] = types.SimpleNamespace(AxDesigner=import_ax)
from study_operator.optimizer.worker import main
main()
""",
    )
    starts = f"""
import subprocess
worker = subprocess.Popen({imports!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
print(worker.pid, flush=True)
worker.wait()
"""
    with subprocess.Popen((sys.executable, "-c", starts), stdout=subprocess.PIPE, text=True) as operator:
        assert operator.stdout is not None
        worker = int(operator.stdout.readline())
        wait_until((tmp_path / "imports").exists)
        operator.kill()
    wait_until(lambda: not is_alive(worker))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
