"""What the studies say of themselves, for Prometheus: read off their status at each scrape, so that nothing can drift.

Only the replica that works knows any study; the others show none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from study_operator.ledger.status import RUNS
from study_operator.ledger.trial import TrialState

Raw = Mapping[str, Any]

FOLDED = "Folded"
"""The reason of attempts of which only sums are left."""


class StudyCollector(Collector):
    """Gauges of every study.

    Args:
        find_studies: returns the studies' objects as last seen.
    """

    def __init__(self, find_studies: Callable[[], Iterable[Raw]]) -> None:
        self._find_studies = find_studies

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the families without a sample."""
        return _Families().all()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the families with a sample a study."""
        families = _Families()
        for body in self._find_studies():
            families.add(body)
        yield from families.all()


class _Families:
    """The gauges of one scrape."""

    def __init__(self) -> None:
        def family(name: str, help_: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"finetune_study_{name}", help_, labels=("namespace", "study", *labels))

        self.condition = family("condition", "1 where a condition of the study is true, else 0.", "condition")
        self.trials = family("trials", "Trials by state.", "state")
        self.spec_trials = family("spec_trials", "spec.numTrials.")
        self.slots = family("slots", "spec.parallelTrials.")
        self.attempts = family(
            "attempts", f"Attempts by how they ended; {FOLDED}: of old ones only sums are kept.", "reason"
        )
        self.spent = family("accelerator_hours", "Accelerator-hours of all ended attempts of trials.")
        self.saved = family("saved_accelerator_hours", "Accelerator-hours that full-length runs would have cost more.")
        self.best = family("best_value", "The objective's metric of the best trial so far.", "metric")
        self.baseline = family("baseline_value", "The objective's metric of the baseline.", "metric")
        self.news = family("last_activity_timestamp_seconds", "When anything was last heard of the study's trials.")

    def all(self) -> list[GaugeMetricFamily]:
        """Return every family."""
        return list(vars(self).values())

    def add(self, body: Raw) -> None:
        """Read one study."""
        metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
        key = [str(metadata["namespace"]), str(metadata["name"])]
        for condition in status.get("conditions") or ():
            self.condition.add_metric([*key, condition["type"]], float(condition["status"] == "True"))
        self.spec_trials.add_metric(key, float(spec.get("numTrials") or 0))
        self.slots.add_metric(key, float(spec.get("parallelTrials") or 0))
        trials = _list_runs(status)
        counts = status.get("trialCounts") or {}
        for state in _STATES:
            self.trials.add_metric([*key, state], float(counts.get(state, 0)))
        for reason, count in sorted(_count_ends(trials).items()):
            self.attempts.add_metric([*key, reason], float(count))
        usage = status.get("usage") or {}
        self.spent.add_metric(key, float(usage.get("acceleratorHours", 0.0)))
        # Null where no trainer tells its seconds.
        if (saved := usage.get("savedAcceleratorHours", 0.0)) is not None:
            self.saved.add_metric(key, float(saved))
        for family, value in ((self.best, status.get("best")), (self.baseline, status.get("baseline"))):
            if value:
                family.add_metric([*key, str(value["metric"])], float(value["value"]))
        self.news.add_metric(key, _find_last_activity(metadata, status))


_STATES = tuple(state.lower() for state in TrialState)
"""As the keys of ``status.trialCounts``: each is one word."""


def _list_runs(status: Raw) -> list[Raw]:
    """Return the trials, the confirmations and the runs of the data curve."""
    return [run for name in RUNS for run in status.get(name) or ()]


def _count_ends(trials: Iterable[Raw]) -> Counter[str]:
    ends: Counter[str] = Counter()
    for trial in trials:
        for attempt in trial.get("attempts") or ():
            if "finishedAt" in attempt:
                ends[attempt.get("reason") or "Unknown"] += 1
        earlier = trial.get("earlierAttempts")
        if earlier:
            ends[FOLDED] += earlier["attempts"]
    return ends


def _find_last_activity(metadata: Raw, status: Raw) -> float:
    """Return when an attempt last began, ended or told how far it is; seconds since 1970."""
    times = [metadata["creationTimestamp"]]
    for trial in _list_runs(status):
        for attempt in (trial.get("attempts") or ())[-1:]:
            times += [attempt["startedAt"], attempt.get("finishedAt") or ""]
    times += [seen["updatedAt"] for seen in status.get("progress") or ()]
    return max(map(_seconds, times))


def _seconds(text: str) -> float:
    """Return a time in seconds since 1970; zero where it is none, as a trainer of somebody else's may write."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
