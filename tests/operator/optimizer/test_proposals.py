"""The optimizer's process: whatever it answers or dies of, its asker lives on, and the study says what is wrong."""

import sys
import threading
import time
from pathlib import Path

import pytest

from builders.some_studies import a_study
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
