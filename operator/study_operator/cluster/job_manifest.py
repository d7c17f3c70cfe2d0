"""What is created on a cluster for one job: the Job, and for trials on many nodes a headless Service.

Pure: values in, manifests out. Called by `cluster/job_runner.py` to create them and by `cluster/preflight.py` to try
them without creating anything. The study's pod template is merged and never overwritten: what it says holds, what it
leaves open gets the defaults below, which run under the restricted Pod Security Standard.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study_operator import names
from study_operator.reconcile.runner import JobKind, JobSpec
from study_operator.spec.study import TRAINER_CONTAINER, PodTemplate, Study
from trial_trainer import contract
from trial_trainer.contract import ExitCode

Raw = dict[str, Any]

COMMAND = ("python", "-m", "trial_trainer")
"""The trial contract's entry point. A template that gives a command of its own keeps it."""

GRACE_SECONDS = 120
"""Default time between SIGTERM and SIGKILL: a checkpoint has to reach the bucket."""

GRACE_MARGIN_SECONDS = 10
"""The trainer gives its ranks this much less than the pod has, so that it can still say how they ended."""

ACCELERATOR = "nvidia.com/gpu"
"""What is asked for where the template asks for no extended resource and no claim itself."""

RENDEZVOUS_PORT = 29500
"""torch's usual port; a pod has a network of its own."""

CONFIG_VARIABLES: Mapping[JobKind, str] = {
    JobKind.PREPARE: contract.PREPARE_CONFIG,
    JobKind.TRIAL: contract.TRIAL_CONFIG,
    JobKind.FINAL_EVALUATION: contract.FINAL_EVALUATION_CONFIG,
}
SUBCOMMANDS: Mapping[JobKind, tuple[str, ...]] = {
    JobKind.PREPARE: ("prepare",),
    JobKind.TRIAL: (),
    JobKind.FINAL_EVALUATION: ("final-evaluation",),
}
RESERVED_VARIABLES = (*CONFIG_VARIABLES.values(), contract.ATTEMPT, contract.TEACHER_API_KEY)
"""Set by the operator alone; a template must not give them."""

CA_DIRECTORY = "/etc/finetune-study/ca"
TEMPORARY = "/tmp"  # noqa: S108  # inside the pod, an emptyDir of its own


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Where a pod finds the bucket's credentials: a Secret and which of its keys hold what. Never the values."""

    secret: str
    keys: Mapping[str, str]
    """Environment variable to key of the Secret."""


@dataclass(frozen=True, kw_only=True)
class PodDefaults:
    """What an installation gives to pods whose template leaves it open."""

    image: str = ""
    """The trainer's image; empty means that every study must name one."""


def build_job(study: Study, spec: JobSpec, credentials: Credentials | None, defaults: PodDefaults) -> Raw:
    """Build the Job of a spec."""
    nodes = study.nodes if spec.kind is JobKind.TRIAL else 1
    labels = build_labels(study, spec)
    template = build_pod_template(study, spec, credentials, defaults)
    queues = {name: value for name, value in _labels_of(template).items() if name in names.QUEUE_LABELS}
    template["metadata"] = {**template.get("metadata", {}), "labels": {**_labels_of(template), **labels}}
    job_spec: Raw = {
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules(is_alone=nodes == 1)},
        "template": template,
    }
    if nodes > 1:
        job_spec["completionMode"] = "Indexed"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": spec.name,
            "namespace": study.namespace,
            "labels": {**queues, **labels},
            "ownerReferences": [_owner(study)],
        },
        "spec": job_spec,
    }


def build_bare_job(study: Study, spec: JobSpec, template: PodTemplate) -> Raw:
    """Build a Job of a template as it is, to be tried where nothing can be merged into it."""
    metadata = {"name": spec.name, "namespace": study.namespace, "ownerReferences": [_owner(study)]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": dict(template)}}


def build_service(study: Study) -> Raw:
    """Build the headless Service that gives the pods of many-node trials their names."""
    labels = {names.STUDY_LABEL: study.name, names.MANAGED_BY_LABEL: names.MANAGER}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names.service(study.name),
            "namespace": study.namespace,
            "labels": labels,
            "ownerReferences": [_owner(study)],
        },
        "spec": {
            "clusterIP": "None",
            # Ranks look for each other before they are ready.
            "publishNotReadyAddresses": True,
            "selector": {names.STUDY_LABEL: study.name, names.KIND_LABEL: JobKind.TRIAL.label},
        },
    }


def build_labels(study: Study, spec: JobSpec) -> dict[str, str]:
    """Build the labels by which the Jobs of a study and their pods are watched."""
    labels = {
        names.STUDY_LABEL: study.name,
        names.STUDY_UID_LABEL: study.uid,
        names.KIND_LABEL: spec.kind.label,
        names.MANAGED_BY_LABEL: names.MANAGER,
    }
    if spec.digest:
        labels[names.DIGEST_LABEL] = spec.digest
    if spec.trial:
        labels |= {names.TRIAL_LABEL: spec.trial, names.RUNG_LABEL: str(spec.rung)}
    return labels


def build_pod_template(study: Study, spec: JobSpec, credentials: Credentials | None, defaults: PodDefaults) -> Raw:
    """Merge what a job needs into the study's pod template."""
    template: Raw = copy.deepcopy(dict(_choose_template(study, spec.kind)))
    pod: Raw = template.setdefault("spec", {})
    containers: list[Raw] = pod.setdefault("containers", [])
    if not containers:
        containers.append({"name": TRAINER_CONTAINER})
    trainer = next(c for c in containers if c.get("name") == TRAINER_CONTAINER)

    pod.setdefault("restartPolicy", "Never")
    pod.setdefault("automountServiceAccountToken", False)
    pod.setdefault("terminationGracePeriodSeconds", GRACE_SECONDS)
    _secure(pod, trainer)

    if defaults.image:
        trainer.setdefault("image", defaults.image)
    trainer.setdefault("command", list(COMMAND))
    if SUBCOMMANDS[spec.kind]:
        trainer["args"] = [*trainer.get("args", []), *SUBCOMMANDS[spec.kind]]
    # Where a pod fails, the last lines of its log are what a person reads in the study's status.
    trainer.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    if spec.kind is not JobKind.PREPARE:
        _ask_for_accelerators(pod, trainer, spec.processes)

    _mount(pod, trainer, "finetune-tmp", TEMPORARY, {"emptyDir": {}})
    if spec.processes > 1:
        # Ranks of one node talk through shared memory, of which a container has 64 MiB.
        _mount(pod, trainer, "finetune-shm", "/dev/shm", {"emptyDir": {"medium": "Memory"}})  # noqa: S108
    bundle = study.storage.ca_bundle
    if bundle is not None:
        items = [{"key": bundle.key, "path": "ca.crt"}]
        source: Raw = (
            {"configMap": {"name": bundle.config_map_name, "items": items}}
            if bundle.config_map_name is not None
            else {"secret": {"secretName": bundle.secret_name, "items": items}}
        )
        _mount(pod, trainer, "finetune-ca", CA_DIRECTORY, source, is_read_only=True)

    given = {variable.get("name") for variable in trainer.get("env", [])}
    ours = _build_environment(study, spec, credentials, int(pod["terminationGracePeriodSeconds"]))
    trainer["env"] = [*trainer.get("env", []), *(v for v in ours if v["name"] not in given)]
    if spec.kind is JobKind.TRIAL and study.nodes > 1:
        pod.setdefault("subdomain", names.service(study.name))
    return template


def _choose_template(study: Study, kind: JobKind) -> PodTemplate:
    """Return the template that a job is made of; prepare's default is the trainer's, without accelerators."""
    template = study.trainer_template or {}
    if kind is not JobKind.PREPARE:
        return template
    return study.data.template or _without_accelerators(template)


def _without_accelerators(template: PodTemplate) -> PodTemplate:
    template = copy.deepcopy(dict(template))
    pod = template.get("spec", {})
    pod.pop("resourceClaims", None)
    for container in pod.get("containers", []):
        resources = container.get("resources", {})
        resources.pop("claims", None)
        for kind in ("limits", "requests"):
            if kind in resources:
                resources[kind] = {name: q for name, q in resources[kind].items() if not is_extended(name)}
    return template


def is_extended(resource: str) -> bool:
    """Say whether a resource is none of Kubernetes' own: accelerators are such, under their vendor's domain."""
    return "/" in resource and not resource.startswith(("kubernetes.io/", "requests.kubernetes.io/"))


def _ask_for_accelerators(pod: Raw, trainer: Raw, count: int) -> None:
    """Ask for accelerators, unless the template asks for any kind of them itself."""
    resources: Raw = trainer.setdefault("resources", {})
    asked = [*resources.get("limits", {}), *resources.get("requests", {})]
    if resources.get("claims") or pod.get("resourceClaims") or any(map(is_extended, asked)):
        return
    resources["limits"] = {**resources.get("limits", {}), ACCELERATOR: str(count)}


def _secure(pod: Raw, trainer: Raw) -> None:
    """Fill in what the restricted Pod Security Standard asks for, where the template says nothing."""
    context = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    pod["securityContext"] = {**context, **pod.get("securityContext", {})}
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        given = container.get("securityContext", {})
        if given.get("privileged"):
            # A choice of its own, with which nothing of ours goes together.
            continue
        default: Raw = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        if container is trainer:
            default["readOnlyRootFilesystem"] = True
        container["securityContext"] = {**default, **given}


def _mount(
    pod: Raw, container: Raw, name: str, path: str, source: Mapping[str, Any], *, is_read_only: bool = False
) -> None:
    """Mount a volume of ours, unless the template has something at that place."""
    mounts: list[Raw] = container.setdefault("volumeMounts", [])
    if any(str(mount.get("mountPath", "")).rstrip("/") == path for mount in mounts):
        return
    mounts.append({"name": name, "mountPath": path, **({"readOnly": True} if is_read_only else {})})
    volumes: list[Raw] = pod.setdefault("volumes", [])
    if all(volume.get("name") != name for volume in volumes):
        volumes.append({"name": name, **source})


def _build_environment(
    study: Study, spec: JobSpec, credentials: Credentials | None, grace_seconds: int
) -> Sequence[Raw]:
    storage = study.storage
    plain: dict[str, str | None] = {
        CONFIG_VARIABLES[spec.kind]: spec.config,
        contract.GRACE: str(max(1, grace_seconds - GRACE_MARGIN_SECONDS)),
        "AWS_ENDPOINT_URL_S3": storage.endpoint,
        "AWS_REGION": storage.region,
        "S3_ADDRESSING_STYLE": storage.addressing_style.lower() if storage.addressing_style != "Auto" else None,
        "AWS_CA_BUNDLE": f"{CA_DIRECTORY}/ca.crt" if storage.ca_bundle is not None else None,
        "HOME": TEMPORARY,
        "PYTHONUNBUFFERED": "1",
    }
    if spec.kind is JobKind.TRIAL and study.nodes > 1:
        # Of the first pod of this Job, by the name that an Indexed Job and the headless Service give it.
        plain[contract.MASTER_ADDRESS] = f"{spec.name}-0.{names.service(study.name)}"
        plain[contract.MASTER_PORT] = str(RENDEZVOUS_PORT)
    # Kubernetes would replace what looks like `$(NAME)`.
    given = {name: value.replace("$", "$$") for name, value in plain.items() if value is not None}
    variables: list[Raw] = [{"name": name, "value": value} for name, value in given.items()]
    variables.append({"name": contract.ATTEMPT, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}})
    if credentials is not None:
        variables += [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": credentials.secret, "key": key}}}
            for name, key in credentials.keys.items()
        ]
    teacher = study.data.teacher
    if spec.kind is JobKind.PREPARE and teacher is not None and teacher.secret_name is not None:
        # No other pod of a study has it.
        key_of_secret = {"name": teacher.secret_name, "key": teacher.secret_key}
        variables.append({"name": contract.TEACHER_API_KEY, "valueFrom": {"secretKeyRef": key_of_secret}})
    return variables


def _failure_rules(*, is_alone: bool) -> list[Raw]:
    """Say which ends fail the Job and which are replaced; the first rule that fits decides.

    Of many nodes one cannot be replaced alone: whichever ends early ends the attempt.
    """
    fault = [int(code) for code in (ExitCode.DIVERGED, ExitCode.ARM_CANNOT_RUN, ExitCode.STUDY_CANNOT_RUN)]
    rules: list[Raw] = [{"action": "FailJob", "onExitCodes": _exit_codes(fault)}]
    if is_alone:
        rules.append(
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        )
        # Asked to stop, or killed: after the grace period, or for lack of memory, which the pod tells.
        rules.append({"action": "Ignore", "onExitCodes": _exit_codes([137, int(ExitCode.ASKED_TO_STOP)])})
    return rules


def _exit_codes(values: Sequence[int]) -> Raw:
    return {"containerName": TRAINER_CONTAINER, "operator": "In", "values": list(values)}


def _owner(study: Study) -> Raw:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": study.name,
        "uid": study.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _labels_of(template: Raw) -> dict[str, str]:
    labels: dict[str, str] = (template.get("metadata") or {}).get("labels") or {}
    return labels
