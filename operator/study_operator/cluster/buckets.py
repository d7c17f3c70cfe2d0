"""Buckets of studies on a cluster: with whose credentials, and who may use the operator's own.

A study names a Secret of its namespace, or it is read with the operator's own identity (IRSA, workload identity); that
only under prefixes, and at the endpoint, that the installation gives to the study's namespace. Called by
`cluster/controller.py` and `cluster/preflight.py`. Values of Secrets are in no message and leave this module only in an
`S3Access`.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import functools
import hashlib
import ipaddress
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from study_operator import names
from study_operator.cluster.api import Kube, KubeError, Raw, path_of
from study_operator.cluster.job_manifest import Credentials
from study_operator.errors import OperatorError
from study_operator.metrics import Metrics
from study_operator.reasons import ConditionReason
from study_operator.reconcile.job_specs import artifacts_uri
from study_operator.settings import Allowance
from study_operator.spec.study import CaBundle, Study
from trial_trainer.artifacts import ArtifactError, ArtifactStore, S3Access, open_store
from trial_trainer.files import write_whole

SECRET_KEYS: Mapping[str, tuple[str, str]] = {
    "AWS_ACCESS_KEY_ID": ("AWS_ACCESS_KEY_ID", "accessKeyId"),
    "AWS_SECRET_ACCESS_KEY": ("AWS_SECRET_ACCESS_KEY", "secretAccessKey"),
    "AWS_SESSION_TOKEN": ("AWS_SESSION_TOKEN", "sessionToken"),
}
"""What a Secret holds: the variable that a pod gets, and the two names that the key may have."""

OPTIONAL = ("AWS_SESSION_TOKEN",)

REFUSED_NETWORKS = ("127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10", "0.0.0.0/8", "::/128", "fd00:ec2::254/128")
"""This machine, its link with the metadata services of clouds, and no address at all: what answers there trusts whoever
is near, and the operator is near to more than its tenants."""

FRESH_SECONDS = 60.0
"""How long what was read of a Secret or a ConfigMap is taken for what it is."""

_KINDS = {"secrets": "Secret", "configmaps": "ConfigMap"}
_CREDENTIAL_TROUBLE = ("AccessDenied", "CredentialsRefused", "CredentialsExpired")


class StorageRefusedError(OperatorError):
    """A study's storage cannot be used as it is described; one sentence a problem."""

    reason = "StorageRefused"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A study's own prefix, opened, and what its pods need to reach it."""

    store: ArtifactStore
    credentials: Credentials | None


class Buckets:
    """Opens the buckets of studies. May be used by many threads."""

    def __init__(
        self,
        kube: Kube,
        allowances: Mapping[str, tuple[Allowance, ...]],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        *,
        endpoints: tuple[str, ...] | None = None,
        own_addresses: Iterable[str] = (),
    ) -> None:
        """Make an opener.

        Args:
            kube: where Secrets and ConfigMaps are read.
            allowances: by namespace, where the operator's own identity may be used.
            metrics: where what is done with buckets is counted.
            clock: seconds.
            endpoints: patterns of the endpoints that studies may name; None means any that is at none of
                `REFUSED_NETWORKS` and of ``own_addresses``. AWS itself may always be used.
            own_addresses: of the API server, which a study must not reach through the operator.
        """
        self._kube = kube
        self._endpoints = endpoints
        self._refused = (*REFUSED_NETWORKS, *own_addresses)
        self._allowances = allowances
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], tuple[float, Raw | None]] = {}

    def open(self, study: Study) -> Bucket:
        """Open a study's prefix.

        Raises:
            StorageRefusedError: where its Secret, its certificates or its place cannot be used.
            KubeError: where the API server does not answer.
        """
        storage = study.storage
        problems: list[str] = []
        if urlsplit(storage.uri).scheme != "s3":
            problems.append(f"`spec.storage.uri` must start with s3:// on a cluster, got {storage.uri!r}")
        if ".." in storage.uri.split("/") or "//" in storage.uri.removeprefix("s3://"):
            problems.append(f"`spec.storage.uri` must not hold '..' or an empty part, got {storage.uri!r}")
        if storage.endpoint is not None:
            problems += self._check_endpoint(storage.endpoint)
        access = S3Access(
            is_from_environment=False,
            refused_networks=self._refused if self._endpoints is None else (),
            endpoint=storage.endpoint,
            region=storage.region,
            addressing_style=storage.addressing_style.lower(),
        ).impatient()
        credentials = None
        if storage.secret_name is None:
            problems += self._check_prefix(study)
        else:
            keys, values = self._read_secret(study.namespace, storage.secret_name, problems)
            credentials = Credentials(secret=storage.secret_name, keys=keys)
            access = replace(
                access,
                access_key_id=values.get("AWS_ACCESS_KEY_ID"),
                secret_access_key=values.get("AWS_SECRET_ACCESS_KEY"),
                session_token=values.get("AWS_SESSION_TOKEN"),
            )
        if storage.ca_bundle is not None:
            access = replace(access, ca_bundle=self._read_bundle(study.namespace, storage.ca_bundle, problems))
        if problems:
            raise StorageRefusedError(problems)
        try:
            store = open_store(artifacts_uri(study), access)
        except ArtifactError as error:
            raise StorageRefusedError([str(error)]) from error
        return Bucket(store=CountedStore(store, self._metrics), credentials=credentials)

    def doubt(self, study: Study, error_reason: str) -> None:
        """Read a study's Secret anew the next time, where its credentials may have been changed."""
        if error_reason in _CREDENTIAL_TROUBLE and study.storage.secret_name is not None:
            with self._lock:
                self._known.pop(("secrets", study.namespace, study.storage.secret_name), None)

    def _check_endpoint(self, endpoint: str) -> list[str]:
        """Say why the operator sends no request to an endpoint. A name is looked at again where it is connected."""
        if self._endpoints is None:
            host = urlsplit(endpoint).hostname or ""
            try:
                address = ipaddress.ip_address(host)
                address = getattr(address, "ipv4_mapped", None) or address
            except ValueError:
                is_refused = host == "localhost" or host.endswith(".localhost")
            else:
                is_refused = any(address in ipaddress.ip_network(network) for network in self._refused)
            rule = "must be no address of this machine, of its link or of the API server"
        else:
            plain = endpoint.rstrip("/")
            is_refused = not any(fnmatch.fnmatchcase(plain, pattern.rstrip("/")) for pattern in self._endpoints)
            rule = f"must be one that this installation allows ({', '.join(self._endpoints) or 'none but AWS'})"
        return [f"`spec.storage.endpoint` {rule}, got {endpoint!r}"] if is_refused else []

    def _check_prefix(self, study: Study) -> list[str]:
        """Say why the operator's own identity may not be used for a study."""
        storage = study.storage
        allowed = self._allowances.get(study.namespace, ())
        for allowance in allowed:
            is_under = storage.uri.rstrip("/") == allowance.uri or storage.uri.startswith(f"{allowance.uri}/")
            if is_under and (storage.endpoint or "").rstrip("/") == (allowance.endpoint or ""):
                return []
        places = ", ".join(map(_say_allowance, allowed)) or "none"
        asked = _say_allowance(Allowance(uri=storage.uri, endpoint=storage.endpoint))
        message = f"in namespace {study.namespace} the operator's own identity may be used for {places}, got {asked}"
        return [f"`spec.storage.secretName` must be given: {message}"]

    def _read_secret(self, namespace: str, name: str, problems: list[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Return where the Secret holds what, and the values."""
        field = "`spec.storage.secretName`"
        data = self._read_labelled_secret(namespace, name, field, problems)
        if data is None:
            return {}, {}
        keys: dict[str, str] = {}
        values: dict[str, str] = {}
        for variable, alternatives in SECRET_KEYS.items():
            key = next((k for k in alternatives if k in data), None)
            if key is None:
                if variable not in OPTIONAL:
                    message = f"the key {alternatives[0]} or {alternatives[1]}, got {sorted(data)}"
                    problems.append(f"{field} must name a Secret with {message}")
                continue
            value = _decode(data[key])
            if not value or value != value.strip():
                message = "must hold a value without blanks and line breaks around it"
                problems.append(f"{field}: key {key} of Secret {name} {message}")
                continue
            keys[variable], values[variable] = key, value
        return keys, values

    def _read_labelled_secret(self, namespace: str, name: str, field: str, problems: list[str]) -> Raw | None:
        secret = self._look_up("secrets", namespace, name, field, problems)
        if secret is None:
            return None
        if (secret["metadata"].get("labels") or {}).get(names.BUCKET_LABEL) != "true":
            problems.append(
                f'{field} must name a Secret with the label {names.BUCKET_LABEL}: "true", because the operator reads '
                f"no other, got {name!r}"
            )
            return None
        data: Raw = secret.get("data") or {}
        return data

    def _read_bundle(self, namespace: str, bundle: CaBundle, problems: list[str]) -> str | None:
        """Return the file in which the certificates lie now."""
        if bundle.config_map_name is not None:
            field, subject = "`spec.storage.caBundle.configMapName`", f"ConfigMap {bundle.config_map_name}"
            found = self._look_up("configmaps", namespace, bundle.config_map_name, field, problems)
            if found is None:
                return None
            text = str((found.get("data") or {}).get(bundle.key) or "")
        else:
            name = bundle.secret_name or ""
            field, subject = "`spec.storage.caBundle.secretName`", f"Secret {name}"
            data = self._read_labelled_secret(namespace, name, field, problems)
            if data is None:
                return None
            text = _decode(str(data.get(bundle.key) or ""))
        if "-----BEGIN CERTIFICATE-----" not in text:
            problems.append(f"{field} must hold certificates in PEM form under the key {bundle.key} of {subject}")
            return None
        return self._keep(text)

    @functools.cached_property
    def _certificates(self) -> Path:
        """Where certificates lie as files, which is how boto3 takes them; gone with this opener."""
        directory = Path(tempfile.mkdtemp(prefix="finetune-ca-"))
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        return directory

    def _keep(self, text: str) -> str:
        path = self._certificates / f"{hashlib.sha256(text.encode()).hexdigest()}.crt"
        if not path.exists():
            write_whole(path, text)
        return str(path)

    def _look_up(self, plural: str, namespace: str, name: str, field: str, problems: list[str]) -> Raw | None:
        """Return a Secret or a ConfigMap; where there is none to be read, say so."""
        key = (plural, namespace, name)
        with self._lock:
            at, raw = self._known.get(key, (float("-inf"), None))
        if self._clock() - at < FRESH_SECONDS and raw is not None:
            return raw
        kind = _KINDS[plural]
        try:
            raw = self._kube.get(path_of("v1", plural, namespace, name))
        except KubeError as error:
            if error.status != 403:
                raise
            message = f"it may read none of namespace {namespace} before a role that allows it is bound there"
            problems.append(f"{field} must name a {kind} that the operator may read, got {name!r}: {message}")
            return None
        if raw is None:
            problems.append(f"{field} must name a {kind} of namespace {namespace}, got {name!r}, which does not exist")
        with self._lock:
            self._known[key] = (self._clock(), raw)
        return raw


def _say_allowance(allowance: Allowance) -> str:
    return f"{allowance.uri} at {allowance.endpoint or 'AWS'}"


def _decode(value: str) -> str:
    try:
        return base64.b64decode(value).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


@dataclass(frozen=True)
class CountedStore:
    """A store whose operations are counted."""

    store: ArtifactStore
    metrics: Metrics

    @property
    def uri(self) -> str:
        """The prefix, as it was opened."""
        return self.store.uri

    def read(self, key: str, most_bytes: int | None = None) -> bytes | None:
        """Return the object, or None where there is none."""
        with self.metrics.time_bucket("read"):
            return self.store.read(key, most_bytes)

    def write(self, key: str, data: bytes) -> None:
        """Put the object, whole or not at all."""
        with self.metrics.time_bucket("write"):
            self.store.write(key, data)

    def write_new(self, key: str, data: bytes) -> bool:
        """Put the object unless there is one; return whether it was put."""
        with self.metrics.time_bucket("write"):
            return self.store.write_new(key, data)

    def upload(self, key: str, source: Path) -> None:
        """Put a file."""
        with self.metrics.time_bucket("write"):
            self.store.upload(key, source)

    def download(self, key: str, target: Path) -> bool:
        """Fetch an object into a file; return whether there was one."""
        with self.metrics.time_bucket("read"):
            return self.store.download(key, target)

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under a prefix, sorted."""
        with self.metrics.time_bucket("list"):
            yield from self.store.list(prefix)

    def delete(self, prefix: str) -> int:
        """Delete every object whose key is ``prefix`` or lies under it; return how many."""
        with self.metrics.time_bucket("delete"):
            return self.store.delete(prefix)


@dataclass(frozen=True)
class UnusableStore:
    """Stands for a bucket that cannot be opened at the moment: every use says why."""

    uri: str
    why: str

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        """Raise `ArtifactError`."""
        raise ArtifactError(self.why, ConditionReason.STORAGE_REFUSED)

    read = write = write_new = upload = download = list = delete = _refuse
