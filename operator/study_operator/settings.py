"""What an installation may set about the operator itself, and why each default is what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from trial_trainer.codec import Rule, at_least


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and waits of the reconcile loop."""

    attempts_limit: Annotated[int, at_least(1)] = 6
    """Attempts of one rung that the environment may end before the trial is Failed. Six, with the back-off below,
    bridge about five minutes of a sick node or an unreachable registry."""

    interruptions_limit: Annotated[int, at_least(1)] = 50
    """Attempts of one rung that may end with a saved checkpoint (143) although nobody of ours asked: preemption. Each
    of them made progress, so the limit is only there to end what something stops for ever."""

    backoff_seconds: Annotated[float, at_least(0)] = 10.0
    """Wait before the second attempt; it doubles with each further one that the environment ends."""

    backoff_limit_seconds: Annotated[float, at_least(0)] = 600.0
    """Longest wait between two attempts: an hour's outage then costs at most ten minutes more."""

    waiting_said_after_seconds: Annotated[float, at_least(0)] = 120.0
    """How long a job may wait (for an image, an accelerator, its queue) before the study's conditions say so."""

    stuck_limit_seconds: Annotated[float, at_least(0)] = 900.0
    """How long a job may be kept from starting by what only the environment can mend (an image that cannot be pulled, a
    quota, a refused pod) before that counts as an attempt that the environment ended."""

    refusal_limit_seconds: Annotated[float, at_least(0)] = 3600.0
    """How long a rule of the cluster's (Pod Security, a webhook, a policy) may refuse a study's jobs while none of them
    runs, before the study is Stalled. They are tried all the same. An hour outlasts the roll-out of a webhook."""

    cleaned_at_once: Annotated[int, at_least(1)] = 50
    """Checkpoints that one tick deletes at most: each takes the bucket two requests."""

    report_interval_seconds: Annotated[float, at_least(0)] = 60.0
    """Least time between two reports of a study that goes on; its end is always reported at once."""

    progress_interval_seconds: Annotated[float, at_least(0)] = 60.0
    """Least time between two looks at how far the running trials of a study are: each is a request a trial and a write
    of the study's status."""

    deletion_limit_seconds: Annotated[float, at_least(0)] = 600.0
    """How long a deleted study may wait for its prefix in the bucket to be deleted with it. Where the Secret or the
    bucket went first it would wait for ever, and with it its namespace."""


DEFAULTS = Settings()
"""What holds where an installation says nothing."""


# --- On a cluster -----------------------------------------------------------------------------------------------


Endpoint = Annotated[
    str, Rule("must start with http:// or https://", lambda text: text.startswith(("http://", "https://")))
]
Prefix = Annotated[
    str,
    Rule(
        "must start with s3:// and name a bucket",
        lambda text: text.startswith("s3://") and bool(text.removeprefix("s3://").strip("/")),
    ),
]


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """Where the operator's own identity may be used for the studies of a namespace."""

    uri: Prefix
    """``s3://bucket`` or ``s3://bucket/prefix``, without a slash at the end: this prefix and what lies under it."""

    endpoint: Endpoint | None = None
    """The only endpoint that may be asked; None means AWS itself."""
