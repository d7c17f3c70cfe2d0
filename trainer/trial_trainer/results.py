"""Results that are written once: whether one stands already, and whose it is.

After a restore of a study's status another arm's result may lie where this one's belongs. It does not count, and is
replaced. Called at the start of the entry point, so that nothing heavy is imported here.
"""

from __future__ import annotations

import json
import logging

from trial_trainer.artifacts import ArtifactStore
from trial_trainer.contract import FinalEvaluation, RungMeasurement, to_json

log = logging.getLogger(__name__)


def is_there(store: ArtifactStore, key: str, digest: str) -> bool:
    """Say whether a result stands at a key; one with another digest does not count, which the log says.

    Args:
        store: the output prefix.
        key: of the result.
        digest: the configuration's. Where it has none, whatever stands counts.
    """
    found = read_digest(store, key)
    if found is None:
        return False
    if not digest or found == digest:
        return True
    log.warning("%s of %s does not count: its digest must be %r, got %r", key, store.uri, digest, found)
    return False


def write_once(store: ArtifactStore, key: str, result: RungMeasurement | FinalEvaluation) -> bool:
    """Write a result unless one of the same configuration stands; say whether it was written."""
    text = to_json(result).encode()
    if store.write_new(key, text):
        return True
    if is_there(store, key, result.digest):
        return False
    store.write(key, text)
    return True


def read_digest(store: ArtifactStore, key: str) -> str | None:
    """Return the digest that a result carries, which is empty where it carries none; None where there is no result."""
    text = store.read(key)
    if text is None:
        return None
    try:
        result = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    return str(result.get("digest", "")) if isinstance(result, dict) else ""
