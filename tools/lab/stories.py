"""What happens to studies whose pods are real, and what docs/operator.md promises of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from lab.stage import NAMESPACE, Stage, say, show_pod
from on_cluster.operators import wait_until
from on_cluster.studies import StudyOnCluster, read_json, read_keys

LONG = 1000
"""Epochs of which the first rung takes about 40 seconds on one core."""
VERY_LONG = 4 * LONG
"""Long enough for a kubelet to see that a volume is full, and for Kubernetes to give a node up: a minute each."""
SHORT_GRACE = {"node.kubernetes.io/not-ready": 5, "node.kubernetes.io/unreachable": 5}


def tell_apply(stage: Stage) -> None:
    """From apply to the winner; the last arm is the optimizer's."""
    begun = time.monotonic()
    spec = stage.spec(arms=3, epochs=20)
    study = stage.study("shop", {**spec, "numTrials": 4})
    stage.follow(study, has_ended)
    assert study.condition("Complete")["status"] == "True", study.describe()
    stage.kubectl("wait", "fts/shop", "-n", NAMESPACE, "--for=condition=Complete", "--timeout=5s")
    stage.kubectl("get", "jobs", "-n", NAMESPACE, "-L", "finetune.study/trial,finetune.study/rung")
    say(f"{time.monotonic() - begun:.0f} s from apply to the winner, trial t{study.status['winner']:03d}")
    assert [trial["origin"] for trial in study.trials] == ["Baseline", "StartingArm", "StartingArm", "Suggested"]
    measurements = [
        read_json(stage.server, f"{study.prefix()}trials/t000/rungs/{rung}/measurement.json") for rung in (0, 1)
    ]
    assert [r["step"] for r in measurements] == [m["step"] for m in study.trial(0)["measurements"]]
    # What the restricted standard asks for, and no service account's token.
    for pod in study.pods():
        assert not pod["spec"]["automountServiceAccountToken"]
        assert pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"]


def tell_suspend(stage: Stage) -> None:
    """SIGTERM to a trainer that is PID 1: a checkpoint, 143, and on from there."""
    study, _pod = begin_long_trial(stage)
    checkpoints = f"{study.prefix()}trials/t000/rungs/0/checkpoints/"
    assert not read_keys(stage.server, checkpoints)
    begun = time.monotonic()
    stage.kubectl("patch", "fts/shop", "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    wait_until(lambda: not study.live_pods() and not study.live_trials(), seconds=90)
    say(f"the pod and its accelerator are gone after {time.monotonic() - begun:.1f} s")
    stage.follow(study, lambda study: study.states() == ["Pending", *study.states()[1:]])
    assert stage.attempts(study, 0)[0][0] == "AskedToStop"
    saved = sorted({key.split("/checkpoints/")[1].split("/")[0] for key in read_keys(stage.server, checkpoints)})
    assert len(saved) == 1, saved
    say(f"saved: checkpoint {saved[0]}")
    stage.kubectl("patch", "fts/shop", "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    again = stage.wait_for_log(study, "t000", "goes on from")
    print("  ", next(line for line in stage.log(again).splitlines() if "goes on from" in line), flush=True)
    assert f"checkpoints/{saved[0]}" in stage.log(again)
    finish_first_trial(stage, study)
    assert stage.attempts(study, 0) in (
        [("AskedToStop", 143), ("Succeeded", 0)],
        [("AskedToStop", None), ("Succeeded", 0)],
    )


def tell_delete(stage: Stage) -> None:
    """A pod that somebody deletes saves a checkpoint; another one goes on."""
    study, pod = begin_long_trial(stage)
    stage.kubectl("delete", "pod", pod, "-n", NAMESPACE)
    again = stage.wait_for_log(study, "t000", "goes on from")
    assert again != pod
    finish_first_trial(stage, study)
    assert stage.attempts(study, 0) == [("Interrupted", 143), ("Succeeded", 0)]


def tell_memory(stage: Stage) -> None:
    """A trial whose container has too little memory is the arm's fault, and said to be."""
    spec = stage.spec()
    spec["data"]["template"] = stage.spec()["trainer"]["template"]
    spec["trainer"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "300Mi"
    study = stage.study("shop", spec)
    stage.follow(study, has_ended)
    # The Job controller may have begun another pod before the operator takes the Job away.
    assert stage.attempts(study, 0)[0] == ("OutOfMemory", 137)
    assert study.states() == ["Abandoned", "Abandoned"]
    assert "300Mi" in study.trial(0)["message"], study.trial(0)
    print("  ", study.trial(0)["message"], flush=True)
    assert study.condition("Failed")["reason"] == "NothingTrains", study.describe()


def tell_image(stage: Stage) -> None:
    """An image that cannot be pulled is said, and has an end."""
    spec = stage.spec()
    spec["data"]["template"] = stage.spec()["trainer"]["template"]
    spec["trainer"]["template"]["spec"]["containers"][0]["image"] = "127.0.0.1:1/nobody-has-this:1"
    study = stage.study("shop", spec)
    stage.follow(study, lambda study: "ImagePullBackOff" in study.condition("Complete")["message"])
    print("  ", study.condition("Complete")["message"], flush=True)
    stage.follow(study, lambda study: bool(study.trial(0).get("attempts")))
    assert stage.attempts(study, 0)[0] == ("ImagePullBackOff", None)


def tell_eviction(stage: Stage) -> None:
    """Thrown out by the API, as a drain does, then by the kubelet for its disk: each time it goes on from there."""
    spec = stage.spec(epochs=VERY_LONG)
    pod_spec = spec["trainer"]["template"]["spec"]
    pod_spec["volumes"] = [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}]
    pod_spec["containers"][0]["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
    study, pod = begin_long_trial(stage, spec)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
    stage.cluster.api.create(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction", eviction)
    say(f"evicted {pod} through the API")
    again = stage.wait_for_log(study, "t000", "goes on from")
    code = "open('/tmp/filled', 'wb').write(bytes(128 << 20))"
    stage.kubectl("exec", again, "-n", NAMESPACE, "--", "python", "-c", code)
    wait_until(lambda: again not in {p["metadata"]["name"] for p in study.live_pods("t000")}, seconds=180)
    show_pod(stage.pod_status(again))
    finish_first_trial(stage, study)
    ends = stage.attempts(study, 0)
    assert ends[0] == ("Interrupted", 143), ends
    assert ends[1][0] in {"Evicted", "Interrupted"}, ends
    assert ends[-1] == ("Succeeded", 0)


def tell_kubelet(stage: Stage) -> None:
    """A kubelet that is killed and comes back: its pods go on, and what they measured counts."""
    study, _pod = begin_long_trial(stage)
    begun = time.monotonic()
    stage.kill_kubelet()
    wait_until(lambda: not stage.is_ready(), seconds=120)
    say(f"NotReady after {time.monotonic() - begun:.0f} s")
    stage.kubectl("get", "nodes")
    stage.kubectl("get", "pods", "-n", NAMESPACE)
    stage.start_kubelet()
    stage.offer_gpus()
    finish_first_trial(stage, study)
    ends = stage.attempts(study, 0)
    assert ends[-1] == ("Succeeded", 0), ends
    say(f"one pod did all of it: {len(ends) == 1}")


def tell_lost_node(stage: Stage) -> None:
    """A node that stays silent: nothing takes the place of its pod before it is known to be gone."""
    spec = stage.spec(epochs=VERY_LONG)
    spec["trainer"]["template"]["spec"]["tolerations"] = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
        for key, seconds in SHORT_GRACE.items()
    ]
    study, _pod = begin_long_trial(stage, spec)
    stage.kill_kubelet()
    stage.follow(study, lambda study: "NodeLost" in study.trial(0).get("message", ""))
    print("  ", study.trial(0)["message"], flush=True)
    stage.kubectl("get", "pods", "-n", NAMESPACE)
    assert len(study.live_pods("t000")) == 1
    stage.start_kubelet()
    stage.offer_gpus()
    stage.wait_for_log(study, "t000", "goes on from|measurement")
    finish_first_trial(stage, study)
    ends = stage.attempts(study, 0)
    assert ends[-1] == ("Succeeded", 0), ends
    assert ends[0][0] in {"Interrupted", "NodeLost"}, ends


STORIES: Mapping[str, Callable[[Stage], None]] = {
    "apply": tell_apply,
    "suspend": tell_suspend,
    "delete": tell_delete,
    "memory": tell_memory,
    "image": tell_image,
    "eviction": tell_eviction,
    "kubelet": tell_kubelet,
    "lost-node": tell_lost_node,
}


def has_ended(study: StudyOnCluster) -> bool:
    """Say whether a study has come to its end, whichever."""
    return any(study.condition(kind)["status"] == "True" for kind in ("Complete", "Failed"))


def begin_long_trial(stage: Stage, spec: dict[str, Any] | None = None) -> tuple[StudyOnCluster, str]:
    """Apply a study whose first trial takes a while; return it and the pod, once that trains."""
    study = stage.study("shop", spec or stage.spec(arms=2, epochs=LONG))
    pod = stage.wait_for_log(study, "t000", r"step \d+ of \d+, stop at")
    wait_until(lambda: read_step(stage, study) > 20, seconds=60)
    say(f"{pod} trains: step {read_step(stage, study)}")
    return study, pod


def read_step(stage: Stage, study: StudyOnCluster) -> int:
    """Return how far the first trial says that it is."""
    key = f"{study.prefix()}trials/t000/progress.json"
    return int(read_json(stage.server, key)["step"]) if key in read_keys(stage.server, key) else 0


def finish_first_trial(stage: Stage, study: StudyOnCluster) -> None:
    """Wait until the first trial is measured."""
    stage.follow(study, lambda study: bool(study.trial(0).get("measurements")))
