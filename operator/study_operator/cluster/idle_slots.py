"""How long a slot stays idle between two trials: what an accelerator waits for us."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

from study_operator.ledger.trial import Ledger
from study_operator.reconcile.actions import Action, Launch
from study_operator.spec.study import Study

_Rung = tuple[int, int]
"""Index of a trial, and its rung."""


@dataclass
class Slots:
    """The slots of one study, as seen tick by tick."""

    busy: frozenset[_Rung] | None = None
    """What held or waited for a slot after the last tick; None before the first."""
    freed: deque[datetime] = field(default_factory=deque)
    """When each idle slot became idle, the oldest first."""

    def see(self, study: Study, ledger: Ledger, actions: tuple[Action, ...], now: datetime) -> list[float]:
        """Take in what a tick wrote and did; return for how many seconds the slots that it filled were idle.

        A trial that is launched again after a fault takes no other's slot. While a study is suspended, and
        once it has ended, nobody waits.
        """
        trials = ledger.runs
        busy = frozenset((t.index, t.rung) for t in trials if t.is_busy)
        for index, rung in sorted((self.busy or frozenset()) - busy):
            ends = [a.finished_at for a in trials[index].attempts if a.rung == rung and a.finished_at is not None]
            self.freed.append(max(ends, default=now))
        self.busy = busy
        if study.suspend or ledger.outcome is not None:
            self.freed.clear()
        while len(self.freed) > study.parallel_trials:
            self.freed.popleft()
        waits = []
        for action in actions:
            if not isinstance(action, Launch) or any(a.rung == action.rung for a in trials[action.index].attempts):
                continue
            if self.freed:
                waits.append((now - self.freed.popleft()).total_seconds())
        return waits
