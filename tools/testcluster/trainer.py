"""A trainer for scripted pods: it keeps the trial contract in a bucket, without a process and without training.

    trainer = ScriptedTrainer(accuracy=lambda config: 0.5, ends={"t003": 11})
    make_nodes(script=lambda pod: scripts.works(trainer))

It reaches the bucket with what its pod's environment says, as the real one does, so that wrong keys are refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from testcluster import made_up_results
from trial_trainer import contract
from trial_trainer.contract import ExitCode


class ScriptedTrainer:
    """What prepare, trial and final evaluation pods do.

    Args:
        accuracy: What a rung of a trial measures.
        ends: Exit code by trial (or `prepare`, `final-evaluation`) for those that end without a result.
    """

    def __init__(
        self,
        *,
        accuracy: Callable[[contract.TrialConfig], float] = made_up_results.accuracy_of,
        ends: Mapping[str, int] | None = None,
    ) -> None:
        self._accuracy = accuracy
        self._ends = ends or {}
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, ...], Any] = {}
        self.resumed: list[tuple[str, int, int]] = []
        """Trial, rung and step of each attempt that went on from a checkpoint, in order."""

    def __call__(self, environment: Mapping[str, str]) -> int:
        """Do what the pod's environment asks; return the exit code of the contract."""
        if (text := environment.get(contract.PREPARE_CONFIG)) is not None:
            return self._prepare(environment, contract.from_json(contract.PrepareConfig, text))
        if (text := environment.get(contract.FINAL_EVALUATION_CONFIG)) is not None:
            return self._final_evaluation(environment, contract.from_json(contract.FinalEvaluationConfig, text))
        return self._train(environment, contract.from_json(contract.TrialConfig, environment[contract.TRIAL_CONFIG]))

    def _prepare(self, environment: Mapping[str, str], config: contract.PrepareConfig) -> int:
        if "prepare" in self._ends:
            return self._ends["prepare"]
        summary = made_up_results.make_summary(config)
        Prefix(self._client(environment), config.dataset).write(contract.SUMMARY, contract.to_json(summary))
        return ExitCode.STOP_STEP_REACHED

    def _train(self, environment: Mapping[str, str], config: contract.TrialConfig) -> int:
        client = self._client(environment)
        output = Prefix(client, config.output)
        if made_up_results.is_ours(output.read(contract.MEASUREMENT), config.digest):
            return ExitCode.STOP_STEP_REACHED
        if not self._resume(client, config):
            return ExitCode.STUDY_CANNOT_RUN
        if config.trial in self._ends:
            return self._ends[config.trial]
        checkpoint = f"{contract.CHECKPOINTS}/{config.stop_step}-{environment[contract.ATTEMPT]}"
        output.write(f"{checkpoint}/state", "weights")
        latest = {"step": config.stop_step, "checkpoint": checkpoint, "digest": config.digest}
        output.write(contract.LATEST, json.dumps(latest))
        output.write(f"{contract.ADAPTER}/adapter_config.json", "{}")
        measurement = made_up_results.make_measurement(config, self._accuracy(config), checkpoint)
        output.write_new(contract.MEASUREMENT, contract.to_json(measurement))
        return ExitCode.STOP_STEP_REACHED

    def _resume(self, client: Any, config: contract.TrialConfig) -> bool:
        """Find its newest checkpoint, of this rung or of the one before; False where one must exist and does not.

        Without one of its own it begins at its first step, and another's is passed over.
        """
        for prefix in (config.output, config.resume_from):
            latest = Prefix(client, prefix).read(contract.LATEST) if prefix else None
            if latest is not None:
                step = int(json.loads(latest)["step"]) if made_up_results.is_ours(latest, config.digest) else 0
                self.resumed.append((config.trial, config.rung, step))
                return True
        return config.resume_from is None

    def _final_evaluation(self, environment: Mapping[str, str], config: contract.FinalEvaluationConfig) -> int:
        if "final-evaluation" in self._ends:
            return self._ends["final-evaluation"]
        final_evaluation = made_up_results.make_final_evaluation(config)
        Prefix(self._client(environment), config.output).write(
            contract.FINAL_EVALUATION, contract.to_json(final_evaluation)
        )
        return ExitCode.STOP_STEP_REACHED

    def _client(self, environment: Mapping[str, str]) -> Any:
        endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment["AWS_ENDPOINT_URL"]
        key = (endpoint, environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
        with self._lock:
            if key not in self._clients:
                self._clients[key] = boto3.Session().client(
                    "s3",
                    endpoint_url=endpoint,
                    region_name=environment.get("AWS_REGION", "us-east-1"),
                    aws_access_key_id=key[1],
                    aws_secret_access_key=key[2],
                    config=Config(s3={"addressing_style": "path"}, max_pool_connections=16),
                )
            return self._clients[key]


class Prefix:
    """The objects below a URI such as `s3://studies/shop`."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client = client
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/"

    def read(self, key: str) -> str | None:
        """Return an object; None where there is none."""
        try:
            found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
        except self._client.exceptions.NoSuchKey:
            return None
        return str(found["Body"].read().decode())

    def write(self, key: str, text: str) -> None:
        """Write an object."""
        self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=text.encode())

    def write_new(self, key: str, text: str) -> bool:
        """Write an object unless it is there."""
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=text.encode(), IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise
            return False
        return True
