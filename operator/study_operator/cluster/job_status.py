"""What a Job, its pods and its FailedCreate events say, as the `JobStatus` that the reconcile loop understands.

Pure: called by `cluster/job_watches.py` to keep of each object what is needed, and by `cluster/job_runner.py` to put it
together. The design's table "Whose fault" is read off here; what follows from it is for `settle`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from sys import intern
from typing import Any

from study_operator import names
from study_operator.clocks import fit_span, read_time
from study_operator.reasons import EndReason, Problem, WaitReason
from study_operator.reconcile.runner import EndedAttempt, JobKind, JobPhase, JobStatus
from study_operator.spec import limits
from study_operator.spec.study import TRAINER_CONTAINER
from trial_trainer.contract import ExitCode

Raw = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """One Job, as far as it matters."""

    name: str
    namespace: str
    uid: str
    version: int
    """``resourceVersion``."""
    study: str
    """Name of the study, by its label."""
    owner: str
    """UID of the study that controls it."""
    kind: JobKind
    digest: str
    nodes: int
    created_at: datetime
    started_at: datetime | None
    """When it was last allowed to run: the Job controller sets it anew when a suspended Job resumes."""
    is_suspended: bool
    is_deleting: bool
    is_gone: bool = False
    """The object is gone; this is what was last seen of it."""
    ended_at: datetime | None = None
    """When it became Complete or Failed, which is after its last pod ended."""
    has_failed: bool = False
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PodState:
    """One pod of a Job, as far as it matters."""

    name: str
    uid: str
    version: int
    job: str
    """UID of the Job that controls it."""
    index: int
    """Which of many nodes it is."""
    created_at: datetime
    phase: str
    is_deleting: bool
    is_gone: bool = False
    """The object is gone; this is what was last seen of it."""
    is_orphaned: bool = False
    """No Job controls it any more."""
    scheduled_at: datetime | None = None
    unscheduled_since: datetime | None = None
    disrupted_at: datetime | None = None
    disruption: str = ""
    """The reason of its DisruptionTarget condition."""
    started_at: datetime | None = None
    """When its container began, by its node's clock, which may be hours off."""
    finished_at: datetime | None = None
    """The same of its end."""
    exit_code: int | None = None
    end: str = ""
    """The container runtime's reason, such as ``OOMKilled``."""
    wait: str = ""
    """Why a container does not start, such as ``ImagePullBackOff``."""
    reason: str = ""
    message: str = ""
    memory_limit: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.is_gone or self.phase in ("Succeeded", "Failed")

    @property
    def placed_at(self) -> datetime:
        """When it had a node, by the control plane's clocks: nothing of it ran before."""
        return max(self.created_at, self.scheduled_at or self.created_at)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why the Job controller could not create a pod."""

    job: str
    """UID of the Job."""
    first_at: datetime
    last_at: datetime
    message: str


# --- Read -------------------------------------------------------------------------------------------------------


def read_job(raw: Raw) -> JobState | None:
    """Keep what matters of a Job; None where it is none of ours."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    labels = metadata.get("labels") or {}
    kind = _KINDS.get(labels.get(names.KIND_LABEL, ""))
    owner = _controller_of(metadata, names.KIND)
    if kind is None or not owner:
        return None
    conditions = {c["type"]: c for c in status.get("conditions") or () if c.get("status") == "True"}
    end = conditions.get("Complete") or conditions.get("Failed")
    created = _created_at(metadata)
    return JobState(
        name=metadata["name"],
        namespace=intern(metadata["namespace"]),
        uid=intern(metadata["uid"]),
        version=_version(metadata),
        study=intern(labels.get(names.STUDY_LABEL, "")),
        owner=intern(owner),
        kind=kind,
        digest=str(labels.get(names.DIGEST_LABEL) or ""),
        nodes=int(spec.get("completions") or 1),
        created_at=created,
        started_at=read_time(status.get("startTime")),
        is_suspended=bool(spec.get("suspend")),
        is_deleting="deletionTimestamp" in metadata,
        ended_at=read_time(end.get("lastTransitionTime")) or created if end else None,
        has_failed="Failed" in conditions,
        reason=str(end.get("reason") or "") if end else "",
        message=str(end.get("message") or "") if end else "",
    )


def read_pod(raw: Raw, former_job: str = "") -> PodState | None:
    """Keep what matters of a pod; None where no Job controls it, or ever did.

    Args:
        raw: the pod.
        former_job: UID of the Job that controlled it once, which counts where none does now.
    """
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    controller = _controller_of(metadata, "Job")
    job = controller or former_job or str(_labels_of(metadata).get(_JOB_UID_LABEL) or "")
    if not job:
        return None
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    scheduled, disrupted = conditions.get("PodScheduled") or {}, conditions.get("DisruptionTarget") or {}
    is_disrupted = disrupted.get("status") == "True"
    is_unscheduled = scheduled.get("status") == "False"
    statuses = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    trainer: Raw = next((s for s in statuses if s.get("name") == TRAINER_CONTAINER), {})
    state = trainer.get("state") or {}
    running, ended = state.get("running") or {}, state.get("terminated") or {}
    wait = _find_wait(statuses)
    created = _created_at(metadata)
    scheduled_at = read_time(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None
    started_at = read_time(running.get("startedAt") or ended.get("startedAt"))
    messages = (
        wait.message if wait else "",
        scheduled.get("message") if is_unscheduled else "",
        # Where the kubelet has thrown a pod out it says why; the container's last words are those of any other moment.
        status.get("message") if status.get("reason") else "",
        ended.get("message"),
        status.get("message"),
        disrupted.get("message") if is_disrupted else "",
    )
    return PodState(
        name=metadata["name"],
        uid=metadata["uid"],
        version=_version(metadata),
        job=intern(job),
        index=_index_of(metadata),
        created_at=created,
        phase=intern(str(status.get("phase") or "Pending")),
        is_deleting="deletionTimestamp" in metadata,
        is_orphaned=not controller,
        scheduled_at=scheduled_at,
        unscheduled_since=read_time(scheduled.get("lastTransitionTime")) if is_unscheduled else None,
        disrupted_at=read_time(disrupted.get("lastTransitionTime")) if is_disrupted else None,
        disruption=str(disrupted.get("reason") or "") if is_disrupted else "",
        # What runs has begun, whatever the time of it says.
        started_at=started_at or ((scheduled_at or created) if running else None),
        finished_at=read_time(ended.get("finishedAt")),
        exit_code=ended.get("exitCode"),
        end=intern(str(ended.get("reason") or "")),
        wait=wait.reason if wait else "",
        reason=str(status.get("reason") or (scheduled.get("reason") if is_unscheduled else "") or ""),
        message=_last_line(next((str(m) for m in messages if m), "")),
        memory_limit=intern(_find_memory_limit(spec)),
    )


def read_lost_job(raw: Raw) -> JobState | None:
    """Return what a pod tells of the Job that made it, where the Job itself is away; None where it is none of ours.

    How many pods it had nobody knows any more: where there was more than one, as many as there may be.
    """
    metadata, labels = raw["metadata"], _labels_of(raw["metadata"])
    kind = _KINDS.get(labels.get(names.KIND_LABEL, ""))
    uid = _controller_of(metadata, "Job") or labels.get(_JOB_UID_LABEL)
    name, owner = labels.get(_JOB_NAME_LABEL), labels.get(names.STUDY_UID_LABEL)
    if kind is None or not uid or not name or not owner:
        return None
    return JobState(
        name=name,
        namespace=metadata["namespace"],
        uid=uid,
        version=0,
        study=labels.get(names.STUDY_LABEL, ""),
        owner=owner,
        kind=kind,
        nodes=limits.NODES.high if _INDEX_LABEL in labels else 1,
        digest=str(labels.get(names.DIGEST_LABEL) or ""),
        created_at=_created_at(metadata),
        started_at=None,
        is_suspended=False,
        is_deleting=False,
    )


def read_refusal(raw: Raw) -> Refusal | None:
    """Keep what matters of an event; None where it does not tell that a Job's pod could not be created."""
    involved = raw.get("involvedObject") or {}
    if raw.get("reason") != "FailedCreate" or involved.get("kind") != "Job":
        return None
    at = read_time(raw.get("firstTimestamp")) or read_time(raw.get("eventTime")) or _created_at(raw["metadata"])
    last = read_time((raw.get("series") or {}).get("lastObservedTime")) or read_time(raw.get("lastTimestamp")) or at
    message = _last_line(str(raw.get("message") or ""))
    return Refusal(job=str(involved.get("uid")), first_at=at, last_at=last, message=message)


def _find_wait(statuses: Sequence[Raw]) -> Problem | None:
    """Return why a container waits that cannot start by itself."""
    for status in statuses:
        waiting = (status.get("state") or {}).get("waiting") or {}
        reason = str(waiting.get("reason") or "")
        if reason and reason not in _MERELY_STARTING:
            # The kubelet alternates between the two: one is the other's cause.
            word = WaitReason.IMAGE_PULL_BACK_OFF if reason == "ErrImagePull" else reason
            return Problem(word, str(waiting.get("message") or ""))
    return None


_MERELY_STARTING = ("ContainerCreating", "PodInitializing")
_INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
_JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
_JOB_UID_LABEL = "batch.kubernetes.io/controller-uid"
_KINDS: Mapping[str, JobKind] = {kind.label: kind for kind in JobKind}


def _find_memory_limit(spec: Raw) -> str:
    trainer: Raw = next((c for c in spec.get("containers") or () if c.get("name") == TRAINER_CONTAINER), {})
    return str(((trainer.get("resources") or {}).get("limits") or {}).get("memory") or "")


def _controller_of(metadata: Raw, kind: str) -> str:
    """Return the UID of the object of a kind that controls another; empty where none does."""
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == kind:
            return str(owner["uid"])
    return ""


def _labels_of(metadata: Raw) -> Mapping[str, str]:
    return metadata.get("labels") or {}


def _version(metadata: Raw) -> int:
    # Opaque by contract until 1.35, where comparing them became part of it; of one etcd they always were in order.
    return int(metadata["resourceVersion"])


def _created_at(metadata: Raw) -> datetime:
    created = read_time(metadata.get("creationTimestamp"))
    if created is None:
        raise ValueError(f"creationTimestamp must be a time, got {metadata.get('creationTimestamp')!r}")
    return created


def _index_of(metadata: Raw) -> int:
    """Return which of many nodes a pod is. A Job on one node gives no index, and a person's template may give any."""
    text = str((metadata.get("labels") or {}).get(_INDEX_LABEL) or "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def _last_line(text: str) -> str:
    """Return the last line of a log or message that says something, at most 500 characters of it."""
    return next((line.strip()[:500] for line in reversed(text.splitlines()) if line.strip()), "")


# --- Describe ---------------------------------------------------------------------------------------------------


def describe_job(job: JobState, pods: Sequence[PodState], refusal: Refusal | None = None) -> JobStatus:
    """Put together what is seen of one Job.

    Args:
        job: the Job.
        pods: all pods that it ever had, as far as they were seen.
        refusal: the last FailedCreate event, where there is one. It holds until a pod is created.
    """
    # A rank's fault is told by whichever pod knows it; an attempt is one run of the first of them.
    firsts = sorted((p for p in pods if p.index == 0 or job.nodes == 1), key=lambda p: (p.created_at, p.version))
    current = _find_current(job, firsts)
    earlier = tuple(_end_of(job, p) for p in firsts if p is not current and p.has_ended)
    if (
        job.ended_at is not None
        or _have_succeeded(job, pods)
        or ((job.is_deleting or job.is_gone) and all(p.has_ended for p in pods))
    ):
        return _describe_end(job, current, pods, earlier)
    status = JobStatus(
        name=job.name,
        kind=job.kind,
        phase=JobPhase.PENDING,
        attempt=current.uid if current else job.uid,
        digest=job.digest,
        earlier=earlier,
        orphans=tuple(p.name for p in pods if p.is_orphaned and not p.is_deleting and not p.has_ended),
    )
    if current is None or current.started_at is None:
        return _describe_wait(status, job, _find_blocked(pods, current), _find_present(refusal, job, pods))
    started_at, _ = fit_span(current.started_at, None, earliest=current.placed_at)
    status = replace(status, phase=JobPhase.RUNNING, placed_at=current.placed_at, started_at=started_at)
    if current.is_deleting and current.disrupted_at is not None and not current.has_ended:
        message = f"pod {current.name}: {current.message or current.disruption}; it is replaced once it is gone"
        reason = _DISRUPTIONS.get(current.disruption, current.disruption)
        return replace(status, reason=reason, message=message, waits_since=current.disrupted_at)
    return status


def _have_succeeded(job: JobState, pods: Sequence[PodState]) -> bool:
    """Say whether all pods of a Job have succeeded: it will be Complete, which takes its controller a second.

    Nothing of it needs an accelerator any more. After any other end only the controller knows what follows.
    """
    return len({p.index for p in pods if p.phase == "Succeeded"}) >= job.nodes


def _find_current(job: JobState, firsts: Sequence[PodState]) -> PodState | None:
    """Return the pod that stands for the present attempt.

    The last one counts as present even when it has ended, until the Job controller has decided what follows: the Job
    ends, or there is another pod. A Job that its queue has suspended has decided.
    """
    last = firsts[-1] if firsts else None
    if last is None or job.ended_at is not None or job.is_deleting or job.is_gone or not last.has_ended:
        return last
    if last.phase == "Succeeded":
        return last
    if last.end == _OUT_OF_MEMORY:
        # The arm's own fault: what the controller makes another pod for, ten seconds later, is not to be waited for.
        return None
    return None if job.is_suspended or last.is_gone else last


def _find_blocked(pods: Sequence[PodState], current: PodState | None) -> PodState | None:
    """Return the pod that keeps an attempt from starting: of many nodes, one that waits for something."""
    alive = [p for p in pods if not p.has_ended]
    return next((p for p in alive if p.wait or p.unscheduled_since), current)


def _find_present(refusal: Refusal | None, job: JobState, pods: Sequence[PodState]) -> Refusal | None:
    """Return a refusal that still holds; None where a pod was created since, or the Job was started.

    An event is kept for an hour and counts every refusal of a Job, so it may be about an earlier pod.
    """
    since = max(job.created_at, job.started_at or job.created_at, *(p.created_at for p in pods))
    if refusal is None or refusal.last_at < since:
        return None
    return replace(refusal, first_at=max(since, refusal.first_at))


def _describe_wait(status: JobStatus, job: JobState, pod: PodState | None, refusal: Refusal | None) -> JobStatus:
    """Say why a Job does not run."""
    if job.is_suspended:
        return replace(status, reason=WaitReason.QUEUED, message="its queue holds it", waits_since=job.created_at)
    if pod is None:
        if refusal is None:
            return status
        # Of the cluster's making, and no fault of the arm's or of a node's: no clock runs.
        reason = name_refusal(refusal.message) or WaitReason.FAILED_CREATE
        return replace(status, reason=reason, message=refusal.message, waits_since=refusal.first_at, is_refused=True)
    if pod.unscheduled_since is not None:
        return replace(
            status,
            reason=pod.reason or WaitReason.UNSCHEDULABLE,
            message=pod.message,
            waits_since=pod.unscheduled_since,
        )
    if pod.wait:
        begun = pod.scheduled_at or pod.created_at
        return replace(status, reason=pod.wait, message=pod.message, waits_since=begun, is_stuck=True)
    if pod.scheduled_at is not None:
        # An image of many gigabytes is pulled, or a volume is not there: the pod does not tell which.
        message = f"pod {pod.name} is being set up: its image is pulled and its volumes are mounted"
        return replace(status, reason=WaitReason.CONTAINER_CREATING, message=message, waits_since=pod.scheduled_at)
    return status


def name_refusal(message: str) -> str:
    """Return a word for what an API server says where it does not take an object; empty where only it has one."""
    return next((reason for words, reason in _REFUSALS if words in message), "")


_REFUSALS = (
    ("exceeded quota", WaitReason.QUOTA_EXCEEDED),
    ("violates PodSecurity", WaitReason.POD_SECURITY_REFUSED),
    ("failed calling webhook", WaitReason.WEBHOOK_FAILED),
    ("denied the request", WaitReason.ADMISSION_DENIED),
    ("denied request", WaitReason.ADMISSION_DENIED),
)
"""In the words of Kubernetes' admission plugins: quotas, Pod Security, webhooks, and policies written in CEL."""


def _describe_end(
    job: JobState, pod: PodState | None, pods: Sequence[PodState], earlier: tuple[EndedAttempt, ...]
) -> JobStatus:
    """Say how a Job ended: by the pod that knows whose fault it was, else by its own condition."""
    attempt = pod.uid if pod else job.uid
    if job.nodes > 1:
        pod = _find_telling([p for p in pods if pod is None or p.created_at >= pod.created_at]) or pod
    if pod is None:
        code, message = (0, "") if job.ended_at and not job.has_failed else _read_failure(job.message)
        return JobStatus(
            name=job.name,
            kind=job.kind,
            phase=JobPhase.FINISHED,
            attempt=attempt,
            digest=job.digest,
            finished_at=job.ended_at,
            exit_code=code,
            reason="" if code is not None else job.reason,
            message=message,
            earlier=earlier,
        )
    end = _end_of(job, pod)
    code, sentence = (end.exit_code, end.message)
    if code is None and job.has_failed:
        code, sentence = _read_failure(job.message)
    elif job.ended_at is not None and not job.has_failed:
        code = 0
    return JobStatus(
        name=job.name,
        kind=job.kind,
        phase=JobPhase.FINISHED,
        attempt=attempt,
        digest=job.digest,
        placed_at=end.placed_at,
        started_at=end.started_at,
        finished_at=end.finished_at or job.ended_at,
        exit_code=code,
        reason=end.reason if code != 0 else "",
        message=sentence or end.message,
        earlier=earlier,
    )


def _find_telling(pods: Sequence[PodState]) -> PodState | None:
    """Return, of the pods of one attempt on many nodes, the one whose end says whose fault it was."""
    faults = (ExitCode.DIVERGED, ExitCode.ARM_CANNOT_RUN, ExitCode.STUDY_CANNOT_RUN)

    def rank(pod: PodState) -> tuple[int, datetime]:
        at = pod.finished_at or pod.created_at
        if pod.exit_code in faults:
            return 0, at
        if pod.end == _OUT_OF_MEMORY:
            return 1, at
        if pod.disruption:
            return 2, at
        # One that failed by itself before those that were asked to stop because of it.
        is_telling = pod.exit_code not in (None, 0, ExitCode.ASKED_TO_STOP)
        return (3 if is_telling else 4 if pod.exit_code else 5), at

    return min(pods, key=rank, default=None)


def _end_of(job: JobState, pod: PodState) -> EndedAttempt:
    """Say how one pod ended."""
    reason, message = "", pod.message
    is_taken = job.is_deleting or job.is_gone or (pod.is_deleting and pod.started_at is None)
    if pod.end == _OUT_OF_MEMORY:
        reason = _OUT_OF_MEMORY
        limit = f"its memory limit is {pod.memory_limit}" if pod.memory_limit else "its container has no memory limit"
        message = f"the kernel killed it for lack of memory; {limit}"
    elif pod.exit_code in (0, *ExitCode):
        pass
    elif pod.disruption:
        reason = _DISRUPTIONS.get(pod.disruption, pod.disruption)
    elif pod.reason:
        reason = pod.reason
    elif pod.exit_code is None:
        # Without a word of its container: taken away, by its queue or by a person.
        reason = EndReason.INTERRUPTED if is_taken or job.is_suspended or pod.is_deleting else EndReason.POD_LOST
    elif pod.exit_code == _KILLED and is_taken:
        # At the end of its grace period; or before it had begun, of which a kubelet says the same.
        reason = EndReason.INTERRUPTED
    elif pod.end and pod.end not in ("Error", "Completed"):
        reason = pod.end
    elif pod.exit_code == _KILLED:
        reason = EndReason.KILLED
    started_at, finished_at = fit_span(
        pod.started_at, pod.finished_at or pod.disrupted_at, earliest=pod.placed_at, latest=job.ended_at
    )
    return EndedAttempt(
        attempt=pod.uid,
        placed_at=pod.placed_at,
        started_at=started_at,
        finished_at=finished_at,
        exit_code=pod.exit_code,
        reason=reason,
        message=message,
    )


_OUT_OF_MEMORY = "OOMKilled"
_KILLED = 137
_DISRUPTIONS: Mapping[str, str] = {
    "DeletionByTaintManager": EndReason.NODE_LOST,
    "DeletionByPodGC": EndReason.NODE_LOST,
    "PreemptionByScheduler": EndReason.PREEMPTED,
    "TerminationByKubelet": EndReason.EVICTED,
    "EvictionByEvictionAPI": EndReason.EVICTED,
}
"""What the environment's words for a disruption mean to a person."""


def _read_failure(message: str) -> tuple[int | None, str]:
    """Read the exit code from a Job's own condition, where its pod is gone."""
    match = re.search(r"failed with exit code (\d+)", message)
    return (int(match[1]) if match else None), message
