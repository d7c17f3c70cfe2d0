"""How far a job is: one small object that is written over and over while it runs.

It is there for people, and a job's work must not be lost by it: a store that cannot be written just now is told of in
the log, and the next one is tried. What has to be written is the result.
"""

from __future__ import annotations

import logging

from trial_trainer.artifacts import ArtifactError, open_object
from trial_trainer.contract import Progress, to_json

log = logging.getLogger(__name__)


def write_progress(place: str, progress: Progress) -> None:
    """Write progress over what was written before.

    Args:
        place: URI of the object.
        progress: how far the job is.
    """
    try:
        store, key = open_object(place)
        store.write(key, to_json(progress).encode())
    except ArtifactError as error:
        log.warning("progress is not written: %s", error)
