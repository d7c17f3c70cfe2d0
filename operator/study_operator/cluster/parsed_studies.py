"""Studies as parsed, for as long as their objects stay as they are: where nothing is new, nothing is parsed.

Called by `cluster/controller.py`. A ledger of 500 trials takes ten milliseconds to parse, and pods tell much that
changes none.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from study_operator.cluster.api import Raw
from study_operator.cluster.study_store import manifest_of
from study_operator.ledger.status import Recorded, parse_status
from study_operator.names import StudyKey
from study_operator.spec.parse import parse_study
from study_operator.spec.study import Study

MOST_TRIALS = 10_000
"""Of all studies that are kept; each takes two to four kilobytes."""

_Version = tuple[str, str]


class ParsedStudies:
    """The studies that were reconciled last. May be used by many threads."""

    def __init__(self, most_trials: int = MOST_TRIALS) -> None:
        self._most_trials = most_trials
        self._lock = threading.Lock()
        self._known: OrderedDict[StudyKey, tuple[_Version, Study, Recorded]] = OrderedDict()
        self._trials = 0

    def parse(self, key: StudyKey, body: Raw) -> tuple[Study, Recorded]:
        """Return a study and its status.

        Raises:
            StudyInvalidError: where the manifest cannot be used.
            StatusUnreadableError: where the status is none of this operator's.
        """
        version = (body["metadata"]["uid"], body["metadata"]["resourceVersion"])
        with self._lock:
            known = self._known.get(key)
            if known is not None and known[0] == version:
                self._known.move_to_end(key)
                return known[1], known[2]
        study, recorded = parse_study(manifest_of(body)), parse_status(body.get("status"))
        with self._lock:
            self._drop(key)
            self._known[key] = (version, study, recorded)
            self._trials += len(recorded.ledger.runs)
            while self._trials > self._most_trials:
                self._drop(next(iter(self._known)))
        return study, recorded

    def __len__(self) -> int:
        return len(self._known)

    def forget(self, key: StudyKey) -> None:
        """Forget a study that will not be reconciled soon."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: StudyKey) -> None:
        dropped = self._known.pop(key, None)
        if dropped is not None:
            self._trials -= len(dropped[2].ledger.runs)
