"""Answers of Ax without waiting for Ax: a worker process is asked, and the study is woken when it has answered.

`import ax` takes a process from 80 to 800 MB, and a proposal takes half a second to many seconds, while a hundred
studies want a thread for their ticks. So a tick only leaves its question here and goes on; the answer is handed out to
the tick that asks exactly the same question again. A question is all that Ax is told: what has been measured meanwhile
makes it another one, and the answer to the old one is dropped. The same ledger so gets the same arms, whenever the
worker was started, killed or busy with others.

Arms are asked for one by one, as Ax makes them anyway: the first is launched while the next is thought about.

What the model says, for a report, is asked in the same way, after all questions for arms. Such a question stands until
its answer was handed out, even where more has been measured meanwhile: a study that measures faster than the worker
answers has a report all the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from study_operator.backoff import wait_after
from study_operator.ledger.trial import Trial
from study_operator.metrics import Metrics
from study_operator.names import StudyKey
from study_operator.optimizer.designer import DesignerError, ProposalPendingError, Suggestion
from study_operator.optimizer.reading import ModelReading, digest_question, what_is_told
from study_operator.spec.study import Arm, Study

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "study_operator.optimizer.worker")

IDLE_SECONDS = 120.0
"""A worker that has had nothing to do for so long is ended; the next one takes ten seconds to start."""

ANSWER_SECONDS = 300.0
"""Longest time for one answer: thirty times what 300 measured trials take."""

UNREADABLE = (EOFError, pickle.UnpicklingError, AttributeError, ImportError, IndexError, ValueError)
"""What pickle raises where half an answer came, or something else than an answer."""

RETRY_SECONDS, LONGEST_RETRY_SECONDS = 5.0, 600.0
"""Wait after a worker died over a question, doubled each time."""


class _Kind(StrEnum):
    """What is asked."""

    ARM = "Arm"
    MODEL = "Model"


@dataclass
class _Question:
    """What one study asks."""

    key: StudyKey
    kind: _Kind
    digest: str
    content: bytes
    answer: tuple[str, Any] | None = None
    is_handed_out: bool = False
    failures: int = 0
    not_before: float = 0.0


class Proposals:
    """Questions of all studies and the one worker that answers them. May be used by many threads."""

    def __init__(
        self,
        on_answer: Callable[[StudyKey], None],
        metrics: Metrics,
        *,
        command: Sequence[str] = COMMAND,
        idle_seconds: float = IDLE_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Make an asker; nothing is started yet.

        Args:
            on_answer: told which study has an answer; called from the asking thread.
            metrics: where proposals are counted.
            command: what starts a worker.
            idle_seconds: after which a worker without questions is ended.
            answer_seconds: after which a worker is taken for dead.
            retry_seconds: wait after a worker died, doubled each time.
        """
        self._on_answer = on_answer
        self._metrics = metrics
        self._command = tuple(command)
        self._idle_seconds = idle_seconds
        self._answer_seconds = answer_seconds
        self._retry_seconds = retry_seconds
        self._changed = threading.Condition()
        self._questions: OrderedDict[tuple[StudyKey, _Kind], _Question] = OrderedDict()
        """The last one of each kind of each study; unanswered ones in the order in which they came."""
        self._thread: threading.Thread | None = None
        self._worker: subprocess.Popen[bytes] | None = None

    def of(self, key: StudyKey) -> StudyDesigner:
        """Return the designer of one study."""
        return StudyDesigner(self, key)

    def ask(self, key: StudyKey, study: Study, trials: Sequence[Trial]) -> tuple[str, Any] | None:
        """Return the next arm, or leave the question here."""
        content = pickle.dumps(("suggest", study, tuple(trials), 1))
        digest = hashlib.sha256(_what_counts(study, trials)).hexdigest()
        with self._changed:
            known = self._questions.get((key, _Kind.ARM))
            if known is not None and known.digest == digest:
                return known.answer
            # Of the old question nobody wants to know any more.
            self._put(_Question(key=key, kind=_Kind.ARM, digest=digest, content=content))
        return None

    def ask_for_model(
        self, key: StudyKey, study: Study, trials: Sequence[Trial], through: Arm, *, is_last: bool
    ) -> tuple[str, Any] | None:
        """Return what the model says, or leave the question here; of an earlier ledger only where it is not the last.

        Raises:
            DesignerError: where the worker died over the question; it is asked again.
        """
        content = pickle.dumps(("read", study, tuple(trials), dict(through)))
        digest = digest_question(study, trials, through)
        with self._changed:
            known = self._questions.get((key, _Kind.MODEL))
            if known is None or (known.digest != digest and (known.is_handed_out or is_last)):
                self._put(_Question(key=key, kind=_Kind.MODEL, digest=digest, content=content))
                return None
            if known.answer is None and known.failures:
                raise DesignerError(f"the optimizer's process died over it, {known.failures} times so far")
            known.is_handed_out = known.answer is not None
            return known.answer

    def trouble_of(self, key: StudyKey) -> str:
        """Return what went wrong with an arm that is not there yet: a sentence, or nothing."""
        with self._changed:
            question = self._questions.get((key, _Kind.ARM))
            if question is None or question.failures == 0:
                return ""
            return (
                f"the optimizer's process died over the next arm, {question.failures} times so far; it is asked again"
            )

    def forget(self, key: StudyKey) -> None:
        """Forget what a study asked."""
        with self._changed:
            for kind in _Kind:
                self._questions.pop((key, kind), None)

    def _put(self, question: _Question) -> None:
        place = question.key, question.kind
        self._questions.pop(place, None)
        self._questions[place] = question
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="proposals", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    @property
    def worker(self) -> int | None:
        """The worker's process, where one runs."""
        worker = self._worker
        return worker.pid if worker is not None and worker.poll() is None else None

    def _serve(self) -> None:
        while True:
            question = self._next()
            if question is None:
                self._end_worker()
                continue
            begun = time.perf_counter()
            answer = self._answer(question.content)
            kind = "died" if answer is None else answer[0]
            self._metrics.observe_proposal(kind, time.perf_counter() - begun)
            with self._changed:
                if answer is None:
                    question.failures += 1
                    wait = wait_after(question.failures, self._retry_seconds, LONGEST_RETRY_SECONDS)
                    question.not_before = time.monotonic() + wait
                    log.warning(
                        "the optimizer's process died over a question of study %s/%s (%d times); again in %.0f s",
                        *question.key,
                        question.failures,
                        wait,
                    )
                else:
                    question.answer = answer
            # Also of a death: the study says so.
            self._on_answer(question.key)

    def _next(self) -> _Question | None:
        """Wait for the next question that may be asked; None after a time without any."""
        with self._changed:
            idle_since = time.monotonic()
            while True:
                now = time.monotonic()
                open_ones = [q for q in self._questions.values() if q.answer is None]
                # Accelerators wait for arms; people can wait for a report.
                open_ones.sort(key=lambda q: q.kind is _Kind.MODEL)
                due = next((q for q in open_ones if q.not_before <= now), None)
                if due is not None:
                    return due
                has_worker = self._worker is not None
                if has_worker and now - idle_since >= self._idle_seconds:
                    return None
                waits = [q.not_before - now for q in open_ones]
                waits += [idle_since + self._idle_seconds - now] if has_worker else []
                self._changed.wait(min(waits, default=None) if waits else None)

    def _answer(self, content: bytes) -> tuple[str, Any] | None:
        """Ask the worker; None where it died."""
        worker = self._worker
        if worker is None or worker.poll() is not None:
            try:
                worker = self._start_worker()
            except OSError as error:
                # No memory, no more processes: that passes.
                log.warning("the optimizer's process cannot be started: %s", error)
                return None
        if worker.stdin is None or worker.stdout is None:
            raise RuntimeError("the worker must have pipes")
        timer = threading.Timer(self._answer_seconds, worker.kill)
        timer.daemon = True
        timer.start()
        try:
            worker.stdin.write(content)
            worker.stdin.flush()
            answer: tuple[str, Any] = pickle.load(worker.stdout)  # noqa: S301  # our own child's
        except (OSError, *UNREADABLE):
            self._end_worker()
            return None
        finally:
            timer.cancel()
        return answer

    def _start_worker(self) -> subprocess.Popen[bytes]:
        self._end_worker()
        # Threads of torch on cores that others use make a proposal twenty times as slow.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._worker = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        return self._worker

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue


@dataclass(frozen=True)
class StudyDesigner:
    """The `Optimizer` of one study."""

    proposals: Proposals
    key: StudyKey

    def suggest(self, study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        """Return the next arm.

        Raises:
            DesignerError: where no arm can be proposed and no trial is running.
            ProposalPendingError: where the worker has not answered yet; it wakes the study when it has.
        """
        if count < 1:
            return ()
        answer = self.proposals.ask(self.key, study, trials)
        if answer is None:
            raise ProposalPendingError(self.proposals.trouble_of(self.key))
        kind, content = answer
        if kind == "problem":
            raise DesignerError(content)
        suggestions: tuple[Suggestion, ...] = content
        return suggestions

    def read_model(self, study: Study, trials: Sequence[Trial], through: Arm, *, is_last: bool) -> ModelReading:
        """Return what the model says.

        Raises:
            DesignerError: where no model can be read, or the worker died over it.
            ProposalPendingError: where the worker has not answered yet; it wakes the study when it has.
        """
        answer = self.proposals.ask_for_model(self.key, study, trials, through, is_last=is_last)
        if answer is None:
            raise ProposalPendingError
        kind, content = answer
        if kind == "problem":
            raise DesignerError(content)
        reading: ModelReading = content
        return reading


def _what_counts(study: Study, trials: Sequence[Trial]) -> bytes:
    """Return all that a proposal depends on, in one form: not how often a trial was tried, or who is running now."""
    space = (study.uid, study.seed, study.objective, study.outcome_constraints, study.parameters)
    rest = (study.parameter_constraints, study.parallel_trials, study.baseline, study.starting_arms, study.num_trials)
    reported = [(t.index, tuple(sorted(t.arm.items())), t.generation_node, what_is_told(t)) for t in trials]
    return repr((space, rest, sorted(reported))).encode()
