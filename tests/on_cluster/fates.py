"""What may become of requests: every odd answer that we know of, and how a seed draws from them.

A life is one study from its manifest to its end, or to its deletion, with troubles of its own. The same seed draws the
same lives: which requests are struck, by what, from which one on, for how long. When threads run the machine decides.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from on_cluster.proxy import Altered, Call, Fate, Instead, Refusal, Treatment
from testcluster import scripts
from testcluster.scripts import Script

HTML = "<html><head><title>Sign in</title></head><body><p>Please sign in to the network.</p></body></html>"
DEEP = "[" * 100_000
MIB = 1024 * 1024

_SLOW: dict[str, Treatment] = {
    "late by 2 s": Altered(wait_seconds=2.0),
    "late by 8 s": Altered(wait_seconds=8.0),
    "drips": Altered(drip_seconds=0.01),
    "drips for ever": Altered(drip_seconds=2.0),
}
_STRANGE: dict[str, Treatment] = {
    "lost": Fate.LOST,
    "unanswered": Fate.UNANSWERED,
    "cut": Fate.CUT,
    "HTML": Instead(content_type="text/html", body=HTML),
    "HTML 403": Instead(status=403, content_type="text/html", body=HTML),
    "HTML 404": Instead(status=404, content_type="text/html", body=HTML),
    "HTML 502": Instead(status=502, content_type="text/html", body=HTML),
    "404 in plain text": Instead(status=404, content_type="text/plain", body="404 page not found\n"),
    "empty": Instead(body=""),
    "204": Instead(status=204, body=""),
    "wrong JSON": Instead(body='{"kind": "List", "items": [{'),
    "JSON of another kind": Instead(body='["a", 1, null]'),
    "JSON null": Instead(body="null"),
    "JSON nested deeply": Instead(body=DEEP),
    "JSON with nulls": Instead(body='{"metadata": null, "items": null, "spec": null, "status": null}'),
    "not UTF-8": Instead(body='{"metadata": {"name": "\udce9"}}'),
    "64 MiB of blanks": Instead(body="{", filler_bytes=64 * MIB),
    "the clock is an hour fast": Altered(skew_seconds=3600.0),
    "the clock is a day slow": Altered(skew_seconds=-86400.0),
}

_S3_STATUSES = (
    (301, "PermanentRedirect"),
    (307, "TemporaryRedirect"),
    (400, "ExpiredToken"),
    (400, "InvalidRequest"),
    (400, "IncompleteBody"),
    (401, "Unauthorized"),
    (402, "PaymentRequired"),
    (403, "AccessDenied"),
    (403, "InvalidAccessKeyId"),
    (403, "SignatureDoesNotMatch"),
    (403, "RequestTimeTooSkewed"),
    (404, "NoSuchBucket"),
    (405, "MethodNotAllowed"),
    (408, "RequestTimeout"),
    (409, "OperationAborted"),
    (410, "Gone"),
    (411, "MissingContentLength"),
    (413, "EntityTooLarge"),
    (416, "InvalidRange"),
    (418, "Teapot"),
    (422, "Unprocessable"),
    (429, "TooManyRequests"),
    (451, "UnavailableForLegalReasons"),
    (500, "InternalError"),
    (501, "NotImplemented"),
    (502, "BadGateway"),
    (503, "SlowDown"),
    (504, "GatewayTimeout"),
    (507, "InsufficientStorage"),
    (599, "NetworkConnectTimeout"),
)
_ENDLESS_BUCKET = (
    "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>on</NextContinuationToken>"
    "<NextMarker>on</NextMarker></ListBucketResult>"
)
BUCKET: Mapping[str, Treatment] = {
    **_SLOW,
    **_STRANGE,
    **{f"{status} {code}": Refusal(status, code) for status, code in _S3_STATUSES},
    "a list without an end": Instead(content_type="application/xml", body=_ENDLESS_BUCKET),
    "XML cut off": Instead(content_type="application/xml", body="<ListBucketResult><Contents><Key>a"),
    "an error with status 200": Instead(
        content_type="application/xml", body="<Error><Code>InternalError</Code></Error>"
    ),
}
"""What a bucket's server may answer."""

_KUBERNETES_STATUSES = (
    (400, "BadRequest"),
    (401, "Unauthorized"),
    (403, "Forbidden"),
    (405, "MethodNotAllowed"),
    (406, "NotAcceptable"),
    (408, "Timeout"),
    (409, "Conflict"),
    (410, "Expired"),
    (413, "RequestEntityTooLarge"),
    (415, "UnsupportedMediaType"),
    (418, ""),
    (422, "Invalid"),
    (429, "TooManyRequests"),
    (500, "InternalError"),
    (501, "NotImplemented"),
    (502, "BadGateway"),
    (503, "ServiceUnavailable"),
    (504, "Timeout"),
)
KUBERNETES: Mapping[str, Treatment] = {
    **_SLOW,
    **_STRANGE,
    **{f"{status} {reason}": Refusal(status, reason) for status, reason in _KUBERNETES_STATUSES},
}
"""What an API server may answer, or what stands before it."""

_ENDLESS_LIST = '{"kind": "List", "metadata": {"resourceVersion": "1", "continue": "on"}, "items": []}'
LIST: Mapping[str, Treatment] = {
    **KUBERNETES,
    "a list without an end": Instead(body=_ENDLESS_LIST),
    "a list of strangers": Instead(
        body='{"kind": "List", "metadata": {"resourceVersion": "1"}, "items": [{"a": 1}, 2]}'
    ),
}
"""To a list besides."""


def _event(kind: str, body: str) -> Instead:
    return Instead(body=f'{{"type": "{kind}", "object": {body}}}\n')


WATCH: Mapping[str, Treatment] = {
    **KUBERNETES,
    "410 as an event": _event("ERROR", '{"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}'),
    "an error as an event": _event("ERROR", '{"kind": "Status", "code": 500, "message": "etcd is away"}'),
    "an error that is none": _event("ERROR", '"etcd is away"'),
    "an event of nothing": _event("MODIFIED", "null"),
    "an event of a stranger": _event("MODIFIED", '{"metadata": {"labels": 5}}'),
    "a bookmark of another form": _event("BOOKMARK", '{"metadata": {"resourceVersion": "x y"}}'),
    "an event of no kind": _event("RENAMED", "{}"),
}
"""To a watch besides."""


@dataclass(kw_only=True)
class Trouble:
    """Some requests of a kind are struck for a while."""

    server: str
    kind: str
    """How `Call.kind` begins; empty means any."""
    fate: str
    treatment: Treatment
    share: float
    """Of these requests."""
    after: int
    """How many of these requests pass before it begins."""
    seconds: float
    """How long it lasts, from the first that it strikes."""
    ends_at: float = float("inf")
    struck: int = 0

    def __str__(self) -> str:
        subject = f"{self.server} {self.kind}".strip()
        return (
            f"{subject}: {self.fate} ({self.share:.0%} for {self.seconds:.1f} s, after {self.after}; "
            f"struck {self.struck})"
        )

    @property
    def is_over(self) -> bool:
        """Whether it strikes no more."""
        return time.monotonic() > self.ends_at

    def strikes(self, call: Call, chance: random.Random) -> bool:
        """Say whether this request is struck."""
        if call.server != self.server or not call.kind.startswith(self.kind):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if self.ends_at == float("inf"):
            self.ends_at = time.monotonic() + self.seconds
        if self.is_over or chance.random() > self.share:
            return False
        self.struck += 1
        return True


def draw_trouble(chance: random.Random, server: str, kinds: Sequence[str]) -> Trouble:
    """Draw one."""
    kind = chance.choice(kinds)
    table = BUCKET if server == "s3" else WATCH if "WATCH" in kind else LIST if "LIST" in kind else KUBERNETES
    fate = chance.choice([*table])
    return Trouble(
        server=server,
        kind=kind,
        fate=fate,
        treatment=table[fate],
        share=chance.choice([0.3, 0.7, 1.0]),
        after=chance.choice([0, 0, 1, 2, 4, 8]),
        seconds=chance.uniform(0.5, 8.0),
    )


BUCKET_KINDS = ("", "", "s3 GET", "s3 GET", "s3 PUT", "s3 POST", "s3 DELETE")
OWN_KINDS = (
    "",
    "POST jobs",
    "POST jobs",
    "GET jobs",
    "DELETE jobs",
    "GET finetunestudies",
    "PUT finetunestudies/status",
    "PUT finetunestudies/status",
    "PATCH finetunestudies",
    "POST events",
)
"""Of one study."""
SHARED_KINDS = (
    *("LIST jobs", "LIST pods", "LIST events", "LIST finetunestudies"),
    *("WATCH jobs", "WATCH pods", "WATCH events", "WATCH finetunestudies"),
    *("GET leases", "PUT leases", "GET secrets"),
)
"""Of all studies together."""

_NAME = re.compile(rb"life-\d+")


@dataclass(kw_only=True)
class Life:
    """One study, what befalls it and what its pods do."""

    seed: int
    troubles: Sequence[Trouble]
    spec: Mapping[str, Any]
    """Arguments of `a_spec`."""
    event: str
    """`Suspend`, `Widen` or `Delete`: what a person does in the middle; empty: nothing."""
    ends: Mapping[str, int]
    """Exit codes of first pods, by the end of their Job's name."""
    chance: random.Random = field(repr=False)

    @property
    def name(self) -> str:
        """Of its study."""
        return f"life-{self.seed}"

    def __str__(self) -> str:
        troubles = "; ".join(map(str, self.troubles))
        return f"{self.name}: {dict(self.spec)} {self.event or 'untouched'}, pods end {dict(self.ends)}: {troubles}"

    def script(self, job: str, otherwise: Script) -> Script:
        """Return what the next pod of a Job does."""
        word = job.removeprefix(f"{self.name}-")
        ends = dict(self.ends)
        if word not in ends:
            return otherwise
        code = ends.pop(word)
        self.ends = ends
        return scripts.exits(code)


def draw_life(seed: int) -> Life:
    """Draw one."""
    chance = random.Random(seed)
    arms, promoted = chance.randint(2, 4), chance.randint(0, 1)
    rungs = [f"t{number:03d}-r{rung}" for number in range(arms) for rung in (0, 1)]
    troubles = [draw_trouble(chance, "s3", BUCKET_KINDS) for _ in range(chance.randint(1, 3))]
    troubles += [draw_trouble(chance, "kubernetes", OWN_KINDS) for _ in range(chance.randint(1, 3))]
    return Life(
        seed=seed,
        troubles=troubles,
        spec={
            "arms": arms,
            "parallel": chance.randint(1, 3),
            "promoted": 1 + promoted * (arms > 2),
            "storage": {"deletionPolicy": chance.choice(["Retain", "Delete"])},
        },
        event=chance.choice(["", "", "", "Suspend", "Widen", "Delete"]),
        ends={word: chance.choice([1, 10, 137, 143]) for word in rungs if chance.random() < 0.15},
        chance=random.Random(seed),
    )


class Fates:
    """Decides of every request of an operator that has these lives before it."""

    def __init__(self, lives: Sequence[Life], shared: Sequence[Trouble], seed: int) -> None:
        self._lives = {life.name: life for life in lives}
        self._shared = shared
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self.are_shared_struck = False
        """Whether requests that are of no single life are struck."""
        self.is_calm = False
        """Whether every request passes from now on."""
        self.met: Counter[tuple[str, str]] = Counter()
        """How often which fate was met, by server."""

    def decide(self, call: Call) -> Treatment:
        """Say what becomes of a request."""
        found = _NAME.search(call.path.encode()) or _NAME.search(call.body)
        life = self._lives.get(found[0].decode()) if found else None
        troubles, chance = (life.troubles, life.chance) if life else (self._shared, self._chance)
        with self._lock:
            if self.is_calm or (life is None and not self.are_shared_struck):
                return Fate.FORWARD
            for trouble in troubles:
                if trouble.strikes(call, chance):
                    self.met[call.server, trouble.fate] += 1
                    return trouble.treatment
        return Fate.FORWARD
