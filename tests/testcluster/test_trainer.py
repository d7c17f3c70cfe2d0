"""The scripted trainer keeps the contract: measurements last and once, checkpoints found, wrong keys refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from testcluster import scripts
from testcluster.bucket import S3Server
from testcluster.kube import Cluster
from testcluster.node import StandIn
from testcluster.trainer import Prefix, ScriptedTrainer
from trial_trainer import contract
from trial_trainer.contract import BaseModel, RungMeasurement, TrainerSettings, TrialConfig

ROOT = "s3://studies/shop/s1"


def a_config(*, rung: int = 0, trial: str = "t003") -> TrialConfig:
    return TrialConfig(
        study="s1",
        trial=trial,
        rung=rung,
        seed=0,
        arm={"learning_rate": 1e-3},
        base_model=BaseModel(uri="/models/base"),
        dataset=f"{ROOT}/dataset",
        output=f"{ROOT}/trials/{trial}/rungs/{rung}",
        total_steps=100,
        stop_step=100 if rung else 20,
        trainer=TrainerSettings(epochs=1, max_length_tokens=512),
        resume_from=f"{ROOT}/trials/{trial}/rungs/{rung - 1}" if rung else None,
    )


def an_environment(server: S3Server, config: TrialConfig, attempt: str = "a") -> dict[str, str]:
    return {**server.environment(), contract.TRIAL_CONFIG: contract.to_json(config), contract.ATTEMPT: attempt}


def read_measurement(server: S3Server, config: TrialConfig) -> RungMeasurement:
    text = Prefix(server.client(), config.output).read(contract.MEASUREMENT)
    assert text is not None
    return contract.from_json(RungMeasurement, text)


@pytest.fixture
def bucket(s3: S3Server) -> S3Server:
    s3.make_bucket("studies")
    return s3


def test_a_promoted_trial_goes_on_from_the_checkpoint_of_its_first_rung(bucket: S3Server) -> None:
    trainer = ScriptedTrainer()
    assert trainer(an_environment(bucket, a_config())) == 0
    assert trainer(an_environment(bucket, a_config(rung=1))) == 0
    assert trainer.resumed == [("t003", 1, 20)]
    early, late = read_measurement(bucket, a_config()), read_measurement(bucket, a_config(rung=1))
    assert (early.step, late.step) == (20, 100)
    assert late.metrics["accuracy"].value > early.metrics["accuracy"].value
    assert Prefix(bucket.client(), a_config().output).read(f"{early.checkpoint}/state") == "weights"


def test_a_second_attempt_leaves_the_measurement_alone(bucket: S3Server) -> None:
    trainer = ScriptedTrainer()
    assert trainer(an_environment(bucket, a_config(), "a")) == trainer(an_environment(bucket, a_config(), "b")) == 0
    assert read_measurement(bucket, a_config()).checkpoint == "checkpoints/20-a"


def test_a_promoted_trial_without_a_checkpoint_is_the_studys_fault(bucket: S3Server) -> None:
    assert ScriptedTrainer()(an_environment(bucket, a_config(rung=1))) == 12


def test_an_ending_leaves_no_measurement(bucket: S3Server) -> None:
    trainer = ScriptedTrainer(ends={"t003": 11})
    assert trainer(an_environment(bucket, a_config())) == 11
    assert Prefix(bucket.client(), a_config().output).read(contract.MEASUREMENT) is None


def test_wrong_keys_are_refused(bucket: S3Server) -> None:
    environment = an_environment(bucket, a_config()) | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        ScriptedTrainer()(environment)


def test_a_pod_writes_its_measurement(
    cluster: Cluster, namespace: str, make_nodes: Callable[..., StandIn], bucket: S3Server
) -> None:
    trainer = ScriptedTrainer(accuracy=lambda config: 0.25)
    make_nodes(script=lambda pod: scripts.works(trainer))
    attempt: dict[str, Any] = {"name": contract.ATTEMPT, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    environment = {**bucket.environment(), contract.TRIAL_CONFIG: contract.to_json(a_config())}
    variables = [attempt, *({"name": name, "value": value} for name, value in environment.items())]
    container = {"name": "trainer", "image": "none", "env": variables}
    pods = f"/api/v1/namespaces/{namespace}/pods"
    spec = {"restartPolicy": "Never", "containers": [container]}
    pod = cluster.api.create(pods, {"metadata": {"name": "a"}, "spec": spec})
    ended = cluster.api.wait_for(pods, "a", lambda pod: pod is not None and pod["status"]["phase"] == "Succeeded")
    assert ended is not None, json.dumps(pod)
    measurement = read_measurement(bucket, a_config())
    assert measurement.metrics["accuracy"].value == 0.25
    assert measurement.checkpoint == f"checkpoints/20-{pod['metadata']['uid']}"
