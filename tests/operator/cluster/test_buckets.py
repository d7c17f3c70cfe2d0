"""Which buckets may be opened with whose credentials: what is refused, in which words, and what is never asked."""

from __future__ import annotations

import base64
import contextlib
import gc
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from builders.kube_of_dicts import KubeOfDicts
from builders.some_studies import a_study
from study_operator import names
from study_operator.cluster.api import Kube, path_of
from study_operator.cluster.buckets import Buckets, StorageRefusedError
from study_operator.metrics import Metrics
from study_operator.settings import Allowance
from study_operator.spec.study import CaBundle, Storage, Study

SECRET = path_of("v1", "secrets", "shop-ml", "keys")
ALLOWED = {"shop-ml": (Allowance(uri="s3://ml/shop", endpoint="https://minio.example"),)}


def a_study_at(uri: str, *, endpoint: str | None = "https://minio.example", secret: str | None = None) -> Study:
    storage = Storage(uri=uri, endpoint=endpoint, secret_name=secret)
    return replace(a_study(), namespace="shop-ml", storage=storage)


def problems_of(study: Study, kube: KubeOfDicts | None = None) -> list[str]:
    buckets = Buckets(cast(Kube, kube or KubeOfDicts()), ALLOWED, Metrics())
    with pytest.raises(StorageRefusedError) as refused:
        buckets.open(study)
    return refused.value.problems


@pytest.mark.parametrize("uri", ["s3://ml/shop", "s3://ml/shop/", "s3://ml/shop/deeper"])
def test_the_operators_own_identity_opens_what_lies_under_an_allowance(uri: str) -> None:
    bucket = Buckets(cast(Kube, KubeOfDicts()), ALLOWED, Metrics()).open(a_study_at(uri))
    assert bucket.store.uri.startswith("s3://ml/shop/")
    assert bucket.credentials is None


@pytest.mark.parametrize(
    ("uri", "endpoint"),
    [
        ("s3://ml/shopping", "https://minio.example"),
        ("s3://ml", "https://minio.example"),
        ("s3://other/shop", "https://minio.example"),
        ("s3://ml/shop/../team-b", "https://minio.example"),
        ("s3://ml//shop", "https://minio.example"),
        ("s3://ml/shop", None),
        ("s3://ml/shop", "https://evil.example"),
    ],
)
def test_the_operators_own_identity_opens_nothing_else(uri: str, endpoint: str | None) -> None:
    assert problems_of(a_study_at(uri, endpoint=endpoint))


def test_a_secret_that_may_not_be_read_is_a_sentence_and_no_fault_of_the_operator() -> None:
    kube = KubeOfDicts()
    kube.forbidden.add(SECRET)
    [problem] = problems_of(a_study_at("s3://ml/shop", secret="keys"), kube)
    assert problem == (
        "`spec.storage.secretName` must name a Secret that the operator may read, got 'keys': it may read none of "
        "namespace shop-ml before a role that allows it is bound there"
    )


def test_a_secret_that_was_not_allowed_is_asked_for_again() -> None:
    kube = KubeOfDicts()
    kube.forbidden.add(SECRET)
    buckets = Buckets(cast(Kube, kube), {}, Metrics())
    study = a_study_at("s3://ml/shop", secret="keys")
    with pytest.raises(StorageRefusedError):
        buckets.open(study)
    kube.forbidden.clear()
    keys = {name: base64.b64encode(b"word").decode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    labels = {"finetune.study/bucket": "true"}
    kube.put(SECRET, {"metadata": {"name": "keys", "labels": labels}, "data": keys})
    credentials = buckets.open(study).credentials
    assert credentials is not None and credentials.secret == "keys"


def test_certificates_are_gone_when_nobody_opens_buckets_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kube = KubeOfDicts()
    path = path_of("v1", "configmaps", "shop-ml", "ca")
    kube.put(path, {"metadata": {"name": "ca"}, "data": {"ca.crt": "-----BEGIN CERTIFICATE-----"}})
    study = a_study_at("s3://ml/shop")
    bundle = CaBundle(config_map_name="ca")
    buckets = Buckets(cast(Kube, kube), ALLOWED, Metrics())
    # boto3 reads the file, which holds nothing that it could use.
    with contextlib.suppress(StorageRefusedError, OSError):
        buckets.open(replace(study, storage=replace(study.storage, ca_bundle=bundle)))
    assert [*tmp_path.glob("*/*.crt")]
    del buckets
    gc.collect()
    assert not [*tmp_path.iterdir()]


def a_bucket_at(endpoint: str, endpoints: tuple[str, ...] | None = None) -> list[str]:
    """Return what is wrong with an endpoint, for an installation that allows some."""
    kube = KubeOfDicts()
    keys = {"accessKeyId": "a2V5", "secretAccessKey": "c2VjcmV0"}
    kube.put(SECRET, {"metadata": {"labels": {names.BUCKET_LABEL: "true"}}, "data": keys})
    buckets = Buckets(cast(Kube, kube), {}, Metrics(), endpoints=endpoints, own_addresses=("10.96.0.1",))
    try:
        buckets.open(a_study_at("s3://ml/shop", endpoint=endpoint, secret="keys"))
    except StorageRefusedError as error:
        return error.problems
    return []


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:9000",
        "http://127.1.2.3",
        "http://localhost:9000",
        "http://anything.localhost",
        "http://[::1]:9000",
        "http://169.254.169.254",
        "http://[fe80::1]",
        "http://[fd00:ec2::254]",
        "http://0.0.0.0:6443",
        "https://10.96.0.1",
        "https://10.96.0.1:443",
        "http://[::ffff:127.0.0.1]",
    ],
)
def test_an_endpoint_of_this_machine_of_its_link_or_of_the_api_server_is_refused(endpoint: str) -> None:
    (problem,) = a_bucket_at(endpoint)
    assert problem.startswith("`spec.storage.endpoint` must be no address of this machine, ")
    assert problem.endswith(f"got {endpoint!r}")


def test_any_other_endpoint_may_be_named_where_the_installation_says_nothing() -> None:
    assert a_bucket_at("https://minio.example") == a_bucket_at("http://10.96.0.2:9000") == []


def test_where_the_installation_lists_endpoints_it_is_those_alone_wherever_they_are() -> None:
    allowed = ("https://*.s3.example", "http://127.0.0.1:9000/")
    assert a_bucket_at("https://a.s3.example", allowed) == a_bucket_at("http://127.0.0.1:9000", allowed) == []
    assert a_bucket_at("https://minio.example", allowed) == [
        (
            "`spec.storage.endpoint` must be one that this installation allows (https://*.s3.example, "
            "http://127.0.0.1:9000/), got 'https://minio.example'"
        )
    ]
    assert a_bucket_at("https://minio.example", ())[0].startswith(
        "`spec.storage.endpoint` must be one that this installation allows (none but AWS)"
    )
