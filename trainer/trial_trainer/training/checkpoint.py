"""Checkpoints that a run continues from as if it had not stopped.

A checkpoint is the adapter, the optimizer's moments and the counters, under ``checkpoints/<step>-<attempt>/``. Its
``manifest.json`` with the digest of each file is written last: a checkpoint without it, or that does not match it, is
not whole and is passed over. `latest.json` is a hint for people.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trial_trainer.artifacts import ArtifactStore
from trial_trainer.contract import CHECKPOINTS, LATEST, from_json, to_json
from trial_trainer.errors import StudyError

log = logging.getLogger(__name__)

WEIGHTS, OPTIMIZER, STATE, MANIFEST = "adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What must be the same for a run to go on bit for bit."""

    seed: int
    arm: Mapping[str, float | int | str]
    total_steps: int
    dataset: str
    """The dataset's fingerprint."""
    ranks: int
    train_samples: int | None = None
    digest: str = ""
    """The configuration's. Empty where a person started the run, and in checkpoints of earlier versions: then the
    other fields tell."""

    def describe_others(self, theirs: Identity) -> list[str]:
        """Say by what another identity is another run's; empty where it is this one's."""
        different = {
            name: found
            for name, found in vars(theirs).items()
            if found != getattr(self, name) and not (name == "digest" and "" in (found, self.digest))
        }
        return [f"{name} must be {getattr(self, name)!r}, got {found!r}" for name, found in different.items()]


@dataclass(frozen=True, kw_only=True)
class UntrainedLoss:
    """What the model's loss was before its first step, over single samples, in nats per token."""

    mean: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands, besides weights and moments."""

    identity: Identity
    step: int
    samples_seen: int
    untrained: UntrainedLoss | None
    losses: tuple[float, ...]
    """Of every step since the first, in nats per token."""
    row_tokens: tuple[int, ...]
    """Tokens of a row that fit into memory, by rank."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint, read."""

    key: str
    state: RunState
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    step: int
    sha256: Mapping[str, str]
    """By file."""


def save_checkpoint(
    store: ArtifactStore,
    *,
    attempt: str,
    state: RunState,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> str:
    """Write a checkpoint, its manifest last, and return its key."""
    key = f"{CHECKPOINTS}/{state.step:06d}-{attempt}"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        save_file({n: p.detach().contiguous() for n, p in parameters.items()}, directory / WEIGHTS)
        save_file(_moments(parameters, optimizer), directory / OPTIMIZER)
        (directory / STATE).write_text(to_json(state))
        files = {}
        for file in (WEIGHTS, OPTIMIZER, STATE):
            files[file] = hashlib.sha256((directory / file).read_bytes()).hexdigest()
            store.upload(f"{key}/{file}", directory / file)
    store.write(f"{key}/{MANIFEST}", to_json(_Manifest(step=state.step, sha256=files)).encode())
    store.write(LATEST, json.dumps({"step": state.step, "checkpoint": key}).encode())
    return key


def find_checkpoint(store: ArtifactStore, identity: Identity) -> Checkpoint | None:
    """Return a run's newest whole checkpoint under a rung's output prefix.

    Damaged ones, and those of other runs, are passed over with a warning: after a restore of a study's status another
    arm's may lie there.
    """
    keys = {key.rsplit("/", 1)[0] for key in store.list(f"{CHECKPOINTS}/") if key.endswith(f"/{MANIFEST}")}
    for key in sorted(keys, key=_step_and_attempt, reverse=True):
        checkpoint = _read(store, key, identity)
        if checkpoint is not None:
            return checkpoint
    return None


def restore(
    checkpoint: Checkpoint,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put weights and moments back.

    Raises:
        StudyError: where the checkpoint is of another model.
    """
    if checkpoint.weights.keys() != parameters.keys():
        raise StudyError(f"checkpoint {checkpoint.key} belongs to another model: its adapter has other layers")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(checkpoint.weights[name])
            optimizer.state[parameter] = {
                "step": checkpoint.moments[f"{name}.step"].clone(),
                "exp_avg": checkpoint.moments[f"{name}.exp_avg"].to(parameter.device),
                "exp_avg_sq": checkpoint.moments[f"{name}.exp_avg_sq"].to(parameter.device),
            }


def delete_older(store: ArtifactStore, *, attempt: str, keep: str) -> None:
    """Delete this attempt's checkpoints before the one to keep; other attempts' stay, they may still be written."""
    newest, _ = _step_and_attempt(keep)
    for key in {"/".join(key.split("/")[:2]) for key in store.list(f"{CHECKPOINTS}/")}:
        step, writer = _step_and_attempt(key)
        if writer == attempt and 0 <= step < newest:
            # The manifest first, so that what is half deleted is not taken for whole.
            store.delete(f"{key}/{MANIFEST}")
            store.delete(key)


def _step_and_attempt(key: str) -> tuple[int, str]:
    """Return which step a checkpoint is of, and who wrote it; what is no checkpoint's key is older than any.

    The step is a number: as text, 999990 comes after 1000010.
    """
    step, _, attempt = key.rpartition("/")[2].partition("-")
    return (int(step) if re.fullmatch(r"[0-9]{1,18}", step) else -1), attempt


def _moments(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = {}
    for name, parameter in parameters.items():
        for field, value in optimizer.state[parameter].items():
            moments[f"{name}.{field}"] = value.detach().contiguous().clone()
    return moments


def _read(store: ArtifactStore, key: str, identity: Identity) -> Checkpoint | None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        try:
            manifest = from_json(_Manifest, store.read(f"{key}/{MANIFEST}") or b"")
            _download(store, f"{key}/{STATE}", directory / STATE, manifest.sha256[STATE])
            state = from_json(RunState, (directory / STATE).read_bytes())
            different = identity.describe_others(state.identity)
            if different:
                why = "; ".join(different)
                log.warning("checkpoint %s of %s belongs to another run and is passed over: %s", key, store.uri, why)
                return None
            for file in (WEIGHTS, OPTIMIZER):
                _download(store, f"{key}/{file}", directory / file, manifest.sha256[file])
            return Checkpoint(
                key=key,
                state=state,
                weights=load_file(directory / WEIGHTS),
                moments=load_file(directory / OPTIMIZER),
            )
        except (ValueError, KeyError, SafetensorError) as error:
            log.warning("checkpoint %s of %s is not whole and is passed over: %s", key, store.uri, error)
            return None


def _download(store: ArtifactStore, key: str, target: Path, digest: str) -> None:
    found = store.download(key, target)
    if not found or hashlib.sha256(target.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{target.name} does not match its digest")
