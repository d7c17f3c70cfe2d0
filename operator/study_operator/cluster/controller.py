"""What the operator does for one study on a cluster: accept it, tick, say what happened, take leave of it.

Called by the queue of `cluster/work_queue.py`, one thread a study at a time. It reads the study as the watch told it,
and the rest is `reconcile.tick`, the same as on a laptop.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from study_operator import names
from study_operator.backoff import wait_after
from study_operator.cluster.api import Kube, KubeError, Raw, path_of
from study_operator.cluster.buckets import Bucket, Buckets, StorageRefusedError, UnusableStore
from study_operator.cluster.finalizer import Farewell, WaitsError, is_held
from study_operator.cluster.idle_slots import Slots
from study_operator.cluster.job_cache import Memory
from study_operator.cluster.job_manifest import PodDefaults
from study_operator.cluster.job_runner import ClusterRunner
from study_operator.cluster.parsed_studies import ParsedStudies
from study_operator.cluster.preflight import find_problems
from study_operator.cluster.study_store import ClusterStatuses, Studies, manifest_of, study_path
from study_operator.cluster.work_queue import TransientError
from study_operator.errors import ConflictError, StatusRefusedError, StatusUnreadableError, StudyInvalidError
from study_operator.ledger.conditions import render_time
from study_operator.ledger.events import Event
from study_operator.ledger.status import SHORT_BYTES, Recorded, is_same_status, parse_status, render_refusal
from study_operator.ledger.texts import cut
from study_operator.metrics import Metrics
from study_operator.names import StudyKey
from study_operator.optimizer.proposals import Proposals
from study_operator.reasons import ConditionReason, ConditionType, Problem
from study_operator.reconcile.tick import tick
from study_operator.reconcile.warm_start import FoundStudy, NoSuchStudyError
from study_operator.report.losses import KeptLosses
from study_operator.report.write import LedgerKeeper, write_report
from study_operator.settings import DEFAULTS, Settings
from study_operator.spec.parse import parse_study
from study_operator.spec.study import Study
from trial_trainer.artifacts import within

log = logging.getLogger(__name__)

BUCKET_SECONDS = 30.0
"""For all that one reconciliation asks a bucket for, a handful of requests of milliseconds each. What is not answered
by then is asked for again at the next reconciliation."""

FIRST_REFUSED_SECONDS = 1.0
"""Between two tries to launch a job that the cluster does not take; the wait doubles, up to `SLOW_SECONDS`."""

SLOW_SECONDS = 60.0
"""A reconciliation without any news, for what nobody tells: a deadline, a bucket that is back, a Secret that was
made."""

DONE_SECONDS = 3600.0
"""A reconciliation of a study that has ended, about: what can happen to it is told by a watch, or has a time that is
known."""

COMPONENT = "finetune-study-operator"


@dataclass(frozen=True)
class Controller:
    """Reconciles studies. May be used by many threads."""

    kube: Kube
    studies: Studies
    memory: Memory
    buckets: Buckets
    proposals: Proposals
    defaults: PodDefaults
    metrics: Metrics
    settings: Settings = DEFAULTS
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    progress_read_at: dict[StudyKey, datetime] = field(default_factory=dict)
    """When it was last looked how far a study's running trials are."""
    slots: dict[StudyKey, Slots] = field(default_factory=dict)
    ledgers: dict[StudyKey, LedgerKeeper] = field(default_factory=dict)
    losses: KeptLosses = field(default_factory=KeptLosses)
    parsed: ParsedStudies = field(default_factory=ParsedStudies)
    refusals: dict[StudyKey, int] = field(default_factory=dict)
    """How many reconciliations ago the cluster last took a job of a study."""

    def reconcile(self, key: StudyKey) -> float | None:
        """Bring a study one step further.

        Returns:
            Seconds until the next reconciliation without news; None where the study is gone.

        Raises:
            TransientError: where the API server does not answer or the reconciliation must be made again.
        """
        body = self.studies.get(key)
        if body is None:
            self._see_off(key)
            return None
        try:
            with within(BUCKET_SECONDS):
                return self._reconcile(key, body)
        except ConflictError:
            # What was seen of the study is old: look at it.
            if self._refresh(key) is None:
                return self.reconcile(key)
            return 0.0
        except StatusRefusedError as error:
            log.warning("study %s/%s: no form of its status is taken: %s", *key, error)
            return SLOW_SECONDS
        except KubeError as error:
            if not error.is_transient:
                log.warning("study %s/%s: the API server refuses (%s): %s", *key, error.reason, error)
            raise TransientError(str(error)) from error

    def _see_off(self, key: StudyKey) -> None:
        """Forget a study that is gone; one that nobody has told of yet is not."""
        self._let_rest(key)
        try:
            if self.kube.get(study_path(key), only_metadata=True) is None:
                self.memory.forget_study(key)
        except KubeError as error:
            raise TransientError(str(error)) from error

    def _refresh(self, key: StudyKey) -> Raw | None:
        try:
            return self.studies.refresh(key)
        except KubeError as error:
            raise TransientError(str(error)) from error

    def _reconcile(self, key: StudyKey, body: Raw) -> float | None:
        if "deletionTimestamp" in body["metadata"]:
            return self._take_leave(key, body)
        statuses = ClusterStatuses(self.kube, self.studies, body)
        try:
            study, recorded = self.parsed.parse(key, body)
        except StudyInvalidError as error:
            return self._refuse(statuses, error.reason, error.problems)
        except StatusUnreadableError as error:
            log.warning("study %s/%s: %s", *key, error)
            return SLOW_SECONDS
        accepted = recorded.conditions.get("Accepted")
        is_accepted = accepted is not None and accepted.is_true
        if not is_accepted:
            problems = find_problems(study, self.kube, self.buckets, self.defaults)
            if problems:
                return self._refuse(statuses, ConditionReason.SPEC_INVALID, problems)
        # Before anything of it can be in the bucket.
        if self._farewell.hold(study, body):
            return 0.0
        return self._tick(key, study, recorded, statuses)

    def _take_leave(self, key: StudyKey, body: Raw) -> float:
        self._let_rest(key)
        if not is_held(body):
            return SLOW_SECONDS
        now = self.clock()
        try:
            events = self._farewell.let_go(body, now)
        except WaitsError as error:
            raise TransientError(str(error)) from error
        self._post(body, events, now)
        return SLOW_SECONDS

    @property
    def _farewell(self) -> Farewell:
        return Farewell(self.kube, self.studies, self.buckets, self.settings)

    def _tick(self, key: StudyKey, study: Study, recorded: Recorded, statuses: ClusterStatuses) -> float:
        bucket, problem = self._open(study)
        now = self.clock()
        runner = ClusterRunner(self.kube, self.memory, study, bucket.credentials, self.defaults)
        optimizer = self.proposals.of(key)
        result = tick(
            study,
            statuses=statuses,
            runner=runner,
            artifacts=bucket.store,
            designer=optimizer,
            now=now,
            settings=self.settings,
            reporter=lambda study, ledger, raw: write_report(study, ledger, raw, bucket.store, optimizer, self.losses),
            is_progress_wanted=self._is_progress_due(key, now),
            recorded=recorded,
            storage_problem=problem,
            find_study=lambda name: self._find_study((key[0], name)),
        )
        if result.is_dropped:
            raise ConflictError("somebody else wrote the study")
        self._post(statuses.body, result.events, now)
        self.metrics.count_refused(study.namespace, result.refused)
        for seconds in self.slots.setdefault(key, Slots()).see(study, result.ledger, tuple(result.actions), now):
            self.metrics.observe_idle(study.namespace, seconds)
        self._doubt_credentials(study, result.status)
        # Last: nothing waits for it.
        self.ledgers.setdefault(key, LedgerKeeper()).keep(study, result, bucket.store)
        has_forgotten = result.is_settled and runner.forget_gone()
        longest = self._count_refusal(key, is_refused=result.is_refused and not has_forgotten)
        if has_forgotten or not result.is_idle:
            return 0.0
        if result.is_done:
            self._let_rest(key)
            longest = DONE_SECONDS * random.uniform(0.75, 1.25)
        if result.wake_at is not None:
            return min(longest, max(0.0, (result.wake_at - now).total_seconds()))
        return longest

    def _find_study(self, key: StudyKey) -> FoundStudy | None:
        """Return a study that another one of its namespace names; None where there is none."""
        body = self.studies.get(key) or self.studies.refresh(key)
        if body is None:
            return None
        if "deletionTimestamp" in body["metadata"]:
            raise NoSuchStudyError("which is being deleted")
        try:
            return FoundStudy(parse_study(manifest_of(body)), parse_status(body.get("status")))
        except StudyInvalidError as error:
            raise NoSuchStudyError(f"whose spec is not valid: {error.problems[0]}") from error
        except StatusUnreadableError as error:
            raise NoSuchStudyError(f"which cannot be read: {error}") from error

    def _let_rest(self, key: StudyKey) -> None:
        """Keep nothing but the object of a study that has ended, or is to."""
        self.parsed.forget(key)
        self.proposals.forget(key)
        self.progress_read_at.pop(key, None)
        self.slots.pop(key, None)
        self.ledgers.pop(key, None)
        self.refusals.pop(key, None)

    def _count_refusal(self, key: StudyKey, *, is_refused: bool) -> float:
        """Return after how many seconds the cluster may have room for the study's next job."""
        if not is_refused:
            self.refusals.pop(key, None)
            return SLOW_SECONDS
        count = self.refusals[key] = self.refusals.get(key, 0) + 1
        return wait_after(count, FIRST_REFUSED_SECONDS, SLOW_SECONDS)

    def _is_progress_due(self, key: StudyKey, now: datetime) -> bool:
        """Say whether to look how far running trials are, and take it for done."""
        last = self.progress_read_at.setdefault(key, now)
        is_due = now - last >= timedelta(seconds=self.settings.progress_interval_seconds)
        if is_due:
            self.progress_read_at[key] = now
        return is_due

    def _open(self, study: Study) -> tuple[Bucket, Problem | None]:
        try:
            return self.buckets.open(study), None
        except StorageRefusedError as error:
            bucket = Bucket(store=UnusableStore(study.storage.uri, str(error)), credentials=None)
            return bucket, Problem(ConditionReason.STORAGE_REFUSED, str(error))

    def _doubt_credentials(self, study: Study, status: Any) -> None:
        for condition in status.get("conditions", ()):
            if condition["type"] == ConditionType.STORAGE_READY and condition["status"] == "False":
                self.buckets.doubt(study, condition["reason"])

    def _refuse(self, statuses: ClusterStatuses, reason: str, problems: Sequence[str]) -> float:
        """Say why a study is not accepted; it is looked at again when its spec changes, and by the slow timer."""
        raw, version = statuses.read()
        generation = int(statuses.body["metadata"].get("generation") or 0)
        try:
            status = render_refusal(parse_status(raw), reason, problems, generation, self.clock())
        except StatusUnreadableError as error:
            log.warning("study %s: %s", statuses.body["metadata"]["name"], error)
            return SLOW_SECONDS
        if raw is None or not is_same_status(status, raw):
            try:
                statuses.write(status, version)
            except StatusRefusedError:
                first = [cut(problems[0], SHORT_BYTES), "The API server takes no longer message than this."]
                statuses.write(render_refusal(parse_status(raw), reason, first, generation, self.clock()), version)
            event = Event(reason=reason, message="\n".join(problems), is_warning=True)
            self._post(statuses.body, [event], self.clock())
        return SLOW_SECONDS

    def _post(self, body: Raw, events: Sequence[Event], now: datetime) -> None:
        """Post what happened; one that cannot be posted is lost, as events may be."""
        metadata = body["metadata"]
        for event in events:
            raw = build_event(metadata, event, now)
            try:
                self.kube.create(path_of("v1", "events", metadata["namespace"]), raw)
            except KubeError as error:
                log.debug("an event of study %s is lost: %s", metadata["name"], error)
                return


def build_event(metadata: Raw, event: Event, now: datetime) -> Raw:
    """Build an event about a study."""
    at = render_time(now.replace(microsecond=0))
    message = event.message if len(event.message) <= 1000 else f"{event.message[:1000]}…"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "reason": event.reason,
        "message": message,
        "type": "Warning" if event.is_warning else "Normal",
        "count": 1,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
    }
