"""Where a base model's files are, and its tokenizer: the one place that knows what a model's URI means.

Preparing, training and final evaluation all load from what `local_path` returns. transformers is imported when a
tokenizer is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trial_trainer.artifacts import ArtifactError, open_store
from trial_trainer.contract import BaseModel
from trial_trainer.errors import BaseModelError

CACHE = "TRIAL_MODEL_CACHE"
"""Environment variable: the directory that models from ``s3://`` are kept in."""
_WHOLE = ".whole"


def local_path(base_model: BaseModel) -> str:
    """Return a directory with the model's files, downloading what is not here yet.

    A path or ``file://`` is the directory itself. ``hf://owner/name`` is looked up in the hub's cache, at the asked
    revision, and fetched where it is missing. ``s3://bucket/prefix`` is fetched once into a cache directory.

    Raises:
        BaseModelError: where there is no such model.
    """
    parts = urlsplit(base_model.uri)
    match parts.scheme:
        case "" | "file":
            return _directory(parts.path if parts.scheme else base_model.uri)
        case "hf":
            return _hub_snapshot(base_model)
        case "s3":
            return _fetched(base_model)
        case _:
            raise BaseModelError(f"base_model.uri must be a path, hf://… or s3://…, got {base_model.uri!r}")


def name_for_people(base_model: BaseModel, directory: str) -> tuple[str, str | None]:
    """Return a model's name and revision as anybody can fetch it, wherever its files lie here.

    Of the hub it is ``owner/name`` and the commit that was fetched, of a bucket its URI, of a directory the path.

    Args:
        base_model: the model.
        directory: where `local_path` found its files.
    """
    parts = urlsplit(base_model.uri)
    match parts.scheme:
        case "hf":
            commit = Path(directory).name
            return _hub_name(base_model), commit if re.fullmatch(r"[0-9a-f]{40}", commit) else base_model.revision
        case "file":
            return parts.path, None
        case _:
            return base_model.uri, None


def load_tokenizer(base_model: BaseModel) -> Any:
    """Load the model's tokenizer.

    Raises:
        BaseModelError: where there is no model, or its tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    path = local_path(base_model)
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise BaseModelError(
            f"base_model.uri must name a model with a tokenizer, got {base_model.uri!r}: {error}"
        ) from error


def load_config(base_model: BaseModel) -> Any:
    """Load the model's configuration.

    Raises:
        BaseModelError: where there is no model, or transformers does not know its kind.
    """
    from transformers import AutoConfig

    path = local_path(base_model)
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise BaseModelError(f"the base model in {path!r} cannot be loaded: {error}") from error


def longest_sample(config: Any) -> int | None:
    """Return how many tokens the model was made for, None where its configuration names no limit.

    Rotary positions that are stretched reach further than the number that is named, by their factor.
    """
    config = config.get_text_config(decoder=True)
    named = [
        value
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
        if isinstance(value := getattr(config, name, None), int) and value > 0
    ]
    if not named:
        return None
    limit = min(named)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    reach = [_stretched(kind, limit) for kind in kinds]
    return max([limit, *reach])


def _stretched(rope: Mapping[str, Any], limit: int) -> int:
    if rope.get("rope_type") not in ("linear", "yarn"):
        return limit
    return int((rope.get("original_max_position_embeddings") or limit) * float(rope.get("factor") or 1))


def say_too_long(base_model: BaseModel, tokens: int, limit: int) -> str:
    """Return the sentence about samples that are longer than the model."""
    of = f"the positions of the base model {base_model.uri!r}"
    return f"max_length_tokens must be at most {limit:,}, {of}, got {tokens:,}"


def digest_tokenizer(tokenizer: Any) -> str:
    """Return a digest of all that decides token ids: the tokenizer itself and its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    template = json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True)
    return hashlib.sha256(f"{rules}\n{template}".encode()).hexdigest()


def _directory(path: str) -> str:
    if not (Path(path) / "config.json").is_file():
        raise BaseModelError(f"base_model.uri must be a directory with a config.json, got {path!r}")
    return path


def _hub_name(base_model: BaseModel) -> str:
    return base_model.uri.removeprefix("hf://").strip("/")


def _hub_snapshot(base_model: BaseModel) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name = _hub_name(base_model)
    # The weights of other frameworks are never loaded, and some of them are twice as large.
    others = ["*.msgpack", "*.h5", "*.onnx", "*.ot", "*.tflite", "original/*"]
    try:
        return snapshot_download(name, revision=base_model.revision, ignore_patterns=others)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        revision = base_model.revision or "main"
        raise BaseModelError(f"base model hf://{name} at revision {revision!r} cannot be fetched: {error}") from error


def _fetched(base_model: BaseModel) -> str:
    target = _cache() / hashlib.sha256(f"{base_model.uri}\n{base_model.revision}".encode()).hexdigest()[:32]
    if (target / _WHOLE).is_file():
        return str(target)
    try:
        store = open_store(base_model.uri)
        keys = list(store.list())
        if "config.json" not in keys:
            raise BaseModelError(f"base_model.uri must hold a config.json, got {base_model.uri!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".fetching-", dir=target.parent))
        try:
            for key in keys:
                store.download(key, partial / key)
            (partial / _WHOLE).touch()
            _move_into_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except ArtifactError as error:
        raise BaseModelError(f"base model {base_model.uri} cannot be fetched: {error}") from error
    return str(target)


def _move_into_place(partial: Path, target: Path) -> None:
    """Rename, unless another process was first: its directory is as whole as ours."""
    try:
        partial.rename(target)
    except OSError:
        if not (target / _WHOLE).is_file():
            raise


def _cache() -> Path:
    given = os.environ.get(CACHE)
    if given:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "trial-trainer" / "models"
