"""Studies for a real cluster, and what became of them.

Every arm is in the manifest, so that nobody waits for the optimizer; a test that is about it asks for more trials.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from on_cluster.operators import PATIENCE_SECONDS
from study_operator import names
from testcluster.api import Object
from testcluster.bucket import REGION, S3Server, User
from testcluster.kube import Cluster

BUCKET = "ml-studies"
SECRET = "bucket-credentials"
RATES = ("1e-3", "2e-3", "5e-4", "4e-3", "2e-4", "8e-3", "1e-4", "6e-3", "3e-4", "7e-4")
"""The first is the baseline's, and the best of all by `made_up_results.accuracy_of`."""


def a_spec(
    server: S3Server,
    *,
    arms: int = 4,
    parallel: int = 4,
    promoted: int = 1,
    audited: int = 0,
    storage: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return the spec of a study whose arms are all given; the first is its baseline."""
    return {
        "objective": {"metric": "accuracy", "direction": "Maximize"},
        "parameters": [{"name": "learning_rate", "searchSpace": {"logUniform": {"min": "1e-5", "max": "1e-1"}}}],
        "baseline": {"learning_rate": RATES[0]},
        "startingArms": [{"learning_rate": rate} for rate in RATES[1:arms]],
        "numTrials": arms,
        "parallelTrials": parallel,
        "maxFailedTrials": 1,
        "promotion": {"numPromoted": promoted, "numAudited": audited},
        "data": {"source": "s3://shop/pages/", "attributes": ["name", "price"], "labels": {"from": "Markup"}},
        "trainer": {
            "baseModel": {"uri": "/models/base"},
            "epochs": 3,
            "maxLengthTokens": 512,
            "template": {"spec": {"containers": [{"name": "trainer", "image": "trainer"}]}},
        },
        "storage": {
            "uri": f"s3://{BUCKET}/shop",
            "endpoint": server.endpoint,
            "region": REGION,
            "addressingStyle": "Path",
            "secretName": SECRET,
            **(storage or {}),
        },
        **changes,
    }


def a_secret(namespace: str, user: User, *, name: str = SECRET, is_labelled: bool = True) -> Object:
    """Return the Secret of a bucket's user."""
    keys = {"AWS_ACCESS_KEY_ID": user.access_key, "AWS_SECRET_ACCESS_KEY": user.secret_key}
    labels = {names.BUCKET_LABEL: "true"} if is_labelled else {}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()},
    }


@dataclass
class StudyOnCluster:
    """One study: how to change it, and what is seen of it."""

    cluster: Cluster
    namespace: str
    name: str
    seen: Object = field(default_factory=dict)

    @property
    def collection(self) -> str:
        """The path of the studies of its namespace."""
        return f"/apis/{names.API_VERSION}/namespaces/{self.namespace}/{names.PLURAL}"

    def apply(self, spec: Mapping[str, Any]) -> None:
        """Create it, or change it, as a person does with kubectl."""
        self.cluster.apply(self.manifest(spec))

    def manifest(self, spec: Mapping[str, Any]) -> Object:
        """Return what a person applies."""
        return {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": dict(spec),
        }

    def patch(self, **spec: Any) -> None:
        """Change fields of its spec."""
        self.cluster.api.patch(f"{self.collection}/{self.name}", {"spec": spec})

    def delete(self) -> None:
        """Begin to delete it."""
        self.cluster.api.delete(f"{self.collection}/{self.name}")

    def get(self) -> Object | None:
        """Return it; None where it is gone."""
        return self.cluster.api.get(f"{self.collection}/{self.name}")

    def wait(self, is_so: Callable[[StudyOnCluster], Any], *, seconds: float = PATIENCE_SECONDS) -> StudyOnCluster:
        """Wait until something holds for it; look at `status` and the like in the function."""

        def holds(raw: Object | None) -> bool:
            self.seen = raw or {}
            return bool(raw) and bool(is_so(self))

        try:
            self.cluster.api.wait_for(self.collection, self.name, holds, seconds=seconds)
        except TimeoutError:
            raise AssertionError(f"after {seconds:g} s: {self.describe()}") from None
        return self

    def wait_for_condition(self, kind: str, *, seconds: float = PATIENCE_SECONDS) -> StudyOnCluster:
        """Wait as `kubectl wait` does, but for no more once the study has ended otherwise."""
        ends = {kind, "Complete", "Failed"}
        self.wait(lambda study: any(study.condition(end)["status"] == "True" for end in ends), seconds=seconds)
        assert self.condition(kind)["status"] == "True", self.describe()
        return self

    def describe(self) -> str:
        """Return what a person wants to see of it where a test has failed."""
        conditions = [
            f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in self.status.get("conditions", ())
        ]
        stages = [f"{name}: {json.dumps(self.status.get(name))}" for name in ("prepare", "finalEvaluation")]
        return "\n".join([*conditions, *stages, *map(json.dumps, self.trials)])

    def wait_until_gone(self, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until there is no such object any more."""
        self.cluster.api.wait_for(self.collection, self.name, lambda raw: raw is None, seconds=seconds)

    def refresh(self) -> StudyOnCluster:
        """Look at it now."""
        self.seen = self.get() or {}
        return self

    # What was last seen.

    @property
    def status(self) -> Object:
        """Its status; empty before the first write."""
        return self.seen.get("status") or {}

    @property
    def uid(self) -> str:
        """Its UID."""
        return str(self.seen["metadata"]["uid"])

    def condition(self, kind: str) -> Object:
        """Return a condition; one without a status where it was not written yet."""
        found = (c for c in self.status.get("conditions", ()) if c["type"] == kind)
        return next(found, {"status": "", "reason": "", "message": ""})

    @property
    def trials(self) -> Sequence[Object]:
        """The ledger."""
        return self.status.get("trials") or ()

    def trial(self, number: int) -> Object:
        """Return a trial; empty where there is none yet."""
        return self.trials[number] if number < len(self.trials) else {}

    def states(self) -> list[str]:
        """Return the state of every trial."""
        return [trial["state"] for trial in self.trials]

    def measurements(self) -> dict[tuple[int, int], str]:
        """Return what was measured, by trial and rung."""
        return {(t["index"], m["rung"]): m["value"] for t in self.trials for m in t.get("measurements", ())}

    def prefix(self) -> str:
        """Return where its artifacts are in the bucket, with a slash at the end."""
        return f"shop/{self.namespace}/{self.name}-{self.uid[:8]}/"

    # Its Jobs, pods and events.

    def jobs(self) -> dict[str, Object]:
        """Return its Jobs by name."""
        found = self.cluster.api.list(f"/apis/batch/v1/namespaces/{self.namespace}/jobs", labelSelector=self._selector)
        return {job["metadata"]["name"]: job for job in found}

    def pods(self) -> list[Object]:
        """Return its pods."""
        return self.cluster.api.list(f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=self._selector)

    def live_trials(self) -> list[str]:
        """Return the Jobs of trials that have not ended."""
        return [
            name
            for name, job in self.jobs().items()
            if names.TRIAL_LABEL in job["metadata"]["labels"]
            and not any(
                c["type"] in ("Complete", "Failed") and c["status"] == "True"
                for c in job.get("status", {}).get("conditions", ())
            )
        ]

    def live_pods(self, trial: str = "") -> list[Object]:
        """Return its pods that have not ended, or those of one trial."""
        return [
            pod
            for pod in self.pods()
            if pod["status"].get("phase") not in ("Succeeded", "Failed")
            and trial in ("", pod["metadata"]["labels"].get(names.TRIAL_LABEL))
        ]

    def events(self) -> list[Object]:
        """Return what was told of it, in the order of time."""
        selector = f"involvedObject.kind={names.KIND},involvedObject.name={self.name}"
        return self.cluster.api.list(f"/api/v1/namespaces/{self.namespace}/events", fieldSelector=selector)

    def reasons(self) -> set[str]:
        """Return the words of its events."""
        return {event["reason"] for event in self.events()}

    @property
    def _selector(self) -> str:
        return f"{names.STUDY_LABEL}={self.name}"


def created_jobs(cluster: Cluster, namespace: str) -> list[str]:
    """Return the name of every Job that was created, in the order of time, from the API server's own log."""
    return [
        event["objectRef"]["name"]
        for event in cluster.audited(verb="create", resource="jobs", namespace=namespace)
        if "dryRun" not in event["requestURI"] and event["responseStatus"]["code"] == 201
    ]


def read_keys(server: S3Server, prefix: str = "") -> list[str]:
    """Return what is in the bucket."""
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def read_json(server: S3Server, key: str) -> Any:
    """Return an object of the bucket."""
    return json.loads(server.client().get_object(Bucket=BUCKET, Key=key)["Body"].read())
