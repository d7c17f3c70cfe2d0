"""Both artifact stores behind one set of sentences: a directory, and S3 against moto's server on loopback.

moto enforces `If-None-Match: *`, so that the promise of `write_new` is tested through HTTP as well.
"""

import os
import resource
import stat
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from trial_trainer import files
from trial_trainer.artifacts import ArtifactError, ArtifactStore, DirectoryStore, S3Store, join, open_object, open_store

BUCKET = "ml-studies"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server on a free port."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty bucket, and an environment that leads to it and nowhere else."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "S3_ADDRESSING_STYLE": "path",
    }.items():
        monkeypatch.setenv(name, value)
    # It would remember the credentials and the profile of an earlier test.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    ask(f"{endpoint}/moto-api/reset")
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=BUCKET)
    return f"s3://{BUCKET}"


def ask(url: str, data: bytes = b"") -> None:
    """Order something of moto itself."""
    with urllib.request.urlopen(
        urllib.request.Request(url, data, {"Content-Type": "text/plain"}, method="POST")
    ) as answer:
        assert answer.status == 200


@pytest.fixture(params=["directory", "S3", "S3 with a prefix"])
def store(request: pytest.FixtureRequest) -> ArtifactStore:
    """Each kind of store, empty."""
    if request.param == "directory":
        return open_store(str(request.getfixturevalue("tmp_path") / "not" / "there" / "yet"))
    prefix = "/shop/toy-12ab" if "prefix" in request.param else ""
    return open_store(request.getfixturevalue("s3") + prefix)


def fill(store: ArtifactStore, *keys: str) -> None:
    for key in keys:
        store.write(key, key.encode())


# --- Both stores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"one", bytes(range(256)) * 300], ids=["empty", "short", "binary"])
def test_what_is_written_is_read(store, data):
    store.write("trials/t1/measurement.json", b"what was there before, and longer than one")
    store.write("trials/t1/measurement.json", data)

    assert store.read("trials/t1/measurement.json") == data


def test_what_is_missing_is_none(store):
    fill(store, "trials/t1/measurement.json")

    assert store.read("nothing") is None
    # Neither is a prefix an object, nor is there one under an object.
    assert store.read("trials/t1") is None
    assert store.read("trials/t1/measurement.json/more") is None


def test_an_object_is_read_again_only_when_it_is_another_one(store):
    assert store.read_news("report/index.html", None) is None
    store.write("report/index.html", b"one")
    first = store.read_news("report/index.html", None)
    assert first is not None and first.data == b"one"
    assert store.read_news("report/index.html", first.tag) is None
    store.write("report/index.html", b"two")
    second = store.read_news("report/index.html", first.tag)
    assert second is not None and second.data == b"two"
    assert store.read_news("report/index.html", second.tag) is None
    with pytest.raises(ArtifactError, match=r"must have at most 2 bytes"):
        store.read_news("report/index.html", first.tag, most_bytes=2)
    store.delete("report/index.html")
    assert store.read_news("report/index.html", second.tag) is None


def test_nothing_is_listed_where_nothing_was_written(store):
    assert list(store.list()) == []
    assert list(store.list("trials/")) == []
    assert store.delete("trials") == 0


def test_a_new_object_is_written_once_and_the_first_one_stays(store):
    assert store.write_new("measurement.json", b"first") is True
    assert store.write_new("measurement.json", b"second") is False

    assert store.read("measurement.json") == b"first"
    assert list(store.list()) == ["measurement.json"]


def test_of_many_writers_of_a_new_object_one_wins(tmp_path):
    store = DirectoryStore(str(tmp_path))
    gate = threading.Barrier(8)
    won: list[bytes] = []

    def write(data: bytes) -> None:
        gate.wait()
        if store.write_new("rungs/0/measurement.json", data):
            won.append(data)

    threads = [threading.Thread(target=write, args=(bytes([number]),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    assert store.read("rungs/0/measurement.json") == won[0]


def test_a_new_object_is_asked_for_by_if_none_match(s3):
    store = S3Store(s3)
    sent: list[Any] = []
    store._client.meta.events.register("before-send.s3.PutObject", lambda request, **_: sent.append(request))

    store.write_new("measurement.json", b"{}")
    store.write("measurement.json", b"{}")

    assert [request.headers.get("If-None-Match") for request in sent] == [b"*", None]


def test_a_file_goes_up_and_comes_down(store, tmp_path):
    source, target = tmp_path / "weights", tmp_path / "a" / "new" / "directory" / "weights"
    source.write_bytes(b"\0weights")

    store.upload("adapter/weights", source)

    assert store.read("adapter/weights") == b"\0weights"
    assert store.download("adapter/weights", target) is True
    assert target.read_bytes() == b"\0weights"
    assert store.download("adapter/none", tmp_path / "none") is False
    assert not (tmp_path / "none").exists()


def test_keys_are_relative_and_sorted_by_their_letters(store):
    fill(store, "a/b", "a-b", "a/a/z", "b", "a.json")

    assert list(store.list()) == ["a-b", "a.json", "a/a/z", "a/b", "b"]
    assert list(store.list("a/")) == ["a/a/z", "a/b"]
    # A prefix is letters, not a directory.
    assert list(store.list("a/a")) == ["a/a/z"]
    assert list(store.list("a")) == ["a-b", "a.json", "a/a/z", "a/b"]


@pytest.mark.parametrize("prefix", ["trials/t1", "trials/t1/"])
def test_deleting_a_trial_spares_the_one_whose_name_begins_like_it(store, prefix):
    fill(store, "trials/t1/a", "trials/t1/rungs/0/b", "trials/t10/a", "trials/t1.json")

    assert store.delete(prefix) == 2

    assert list(store.list()) == ["trials/t1.json", "trials/t10/a"]


def test_deleting_one_object_spares_the_rest(store):
    fill(store, "summary.json", "summary.json.gz")

    assert store.delete("summary.json") == 1
    assert store.delete("summary.json") == 0

    assert list(store.list()) == ["summary.json.gz"]


def test_deleting_the_empty_prefix_deletes_everything_of_the_store_and_nothing_beside_it(store):
    neighbour = open_store(f"{store.uri}0")
    if isinstance(store, DirectoryStore) or "/" in store.uri.removeprefix("s3://"):
        fill(neighbour, "kept")
    fill(store, "a", "b/c")

    assert store.delete("") == 2

    assert list(store.list()) == []
    if isinstance(store, DirectoryStore) or "/" in store.uri.removeprefix("s3://"):
        assert list(neighbour.list()) == ["kept"]


@pytest.mark.parametrize("key", ["/etc/passwd", "../neighbour/measurement.json", "trials/../../x"])
@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda store, key: store.read(key), id="read"),
        pytest.param(lambda store, key: store.write(key, b""), id="write"),
        pytest.param(lambda store, key: store.delete(key), id="delete"),
    ],
)
def test_a_key_that_leads_out_of_the_store_is_refused(store, key, use):
    with pytest.raises(ArtifactError) as refusal:
        use(store, key)
    assert "the key must be relative to its store, without '..', got " in str(refusal.value)


def test_letters_that_mean_something_in_a_url_are_letters_of_a_key(store):
    fill(store, "a b/ü#1?x=%20&+.json")

    assert list(store.list("a b/")) == ["a b/ü#1?x=%20&+.json"]
    assert store.read("a b/ü#1?x=%20&+.json") is not None


def test_two_stores_of_one_bucket_do_not_see_each_other(s3):
    one, other = open_store(f"{s3}/shop/toy"), open_store(f"{s3}/shop/toy#2")
    fill(one, "x")

    assert list(other.list()) == []
    assert list(open_store(s3).list()) == ["shop/toy/x"]
    assert list(open_store(f"{s3}/shop/").list("toy/")) == ["toy/x"]


def test_more_objects_than_one_page_holds_are_listed_and_deleted(s3):
    store = S3Store(f"{s3}/many")
    calls: list[str] = []
    store._client.meta.events.register("before-call.s3.*", lambda model, **_: calls.append(model.name))
    names = [f"trials/t1/{number:04d}" for number in range(1001)]
    backend_put(names)

    assert list(store.list("trials/")) == names
    assert store.delete("trials/t1") == 1001
    assert list(store.list()) == []
    assert calls.count("DeleteObjects") == 2 and calls.count("ListObjectsV2") == 2 + 2 + 1


def backend_put(names: list[str]) -> None:
    """Put empty objects under `many/` without HTTP, of which a thousand would take seconds."""
    from moto.s3.models import s3_backends

    for name in names:
        s3_backends["123456789012"]["aws"].put_object(BUCKET, f"many/{name}", b"")


# --- A directory ------------------------------------------------------------------------------------------------------


def test_a_write_that_is_cut_off_leaves_the_old_object_and_nothing_else(tmp_path):
    store = DirectoryStore(str(tmp_path))
    store.write("latest.json", b"old")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (store.write, store.write_new):
        # As on a disk that is full: the first bytes are written, then the system refuses.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
        try:
            with pytest.raises(ArtifactError, match=r"cannot be used: .*File too large"):
                write("latest.json", b"new" * 1_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert store.read("latest.json") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["latest.json"]


def test_what_is_being_written_is_no_object(tmp_path):
    store = DirectoryStore(str(tmp_path))
    with files.beside(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        assert list(store.list()) == []
        assert store.read("a") is None


def test_an_object_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        DirectoryStore(str(tmp_path)).write("a", b"")
        DirectoryStore(str(tmp_path)).write_new("b", b"")
    finally:
        os.umask(before)

    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"} == {0o644}


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda store, path: store.write("a", b""), id="write"),
        pytest.param(lambda store, path: store.write_new("a", b""), id="write new"),
        pytest.param(lambda store, path: store.upload("a", path), id="upload"),
    ],
)
def test_a_store_that_is_a_file_is_named(tmp_path, use: Callable[[ArtifactStore, Path], object]):
    path = tmp_path / "pages.jsonl"
    path.touch()
    with pytest.raises(ArtifactError) as refusal:
        use(DirectoryStore(str(path)), path)
    assert str(refusal.value).startswith(f"the directory {path} cannot be used: ")
    assert list(DirectoryStore(str(path)).list()) == []


def test_an_object_cannot_take_the_place_of_a_directory(tmp_path):
    store = DirectoryStore(str(tmp_path))
    fill(store, "a/b")
    with pytest.raises(ArtifactError, match="cannot be used"):
        store.write("a", b"")
    assert list(store.list()) == ["a/b"]


def test_listing_a_prefix_walks_its_directory_alone(tmp_path, monkeypatch):
    store = DirectoryStore(str(tmp_path))
    fill(store, *(f"trials/t{number:03d}/rungs/0/measurement.json" for number in range(50)))
    walked: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: walked.append(str(path)) or scandir(path))

    assert list(store.list("trials/t007/rungs/0/mea")) == ["trials/t007/rungs/0/measurement.json"]
    assert walked == [str(tmp_path / "trials/t007/rungs/0")]
    assert store.delete("trials/t007") == 1
    assert not any("t008" in directory for directory in walked)


# --- S3 that does not answer as it should -----------------------------------------------------------------------------

EVERY_USE = [
    pytest.param(lambda store, path: store.read("k"), id="read"),
    pytest.param(lambda store, path: store.write("k", b""), id="write"),
    pytest.param(lambda store, path: store.write_new("k", b""), id="write new"),
    pytest.param(lambda store, path: store.upload("k", path), id="upload"),
    pytest.param(lambda store, path: store.download("k", path.with_name("target")), id="download"),
    pytest.param(lambda store, path: list(store.list()), id="list"),
    pytest.param(lambda store, path: store.delete("k"), id="delete"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.touch()
    return path


@pytest.mark.parametrize("use", EVERY_USE)
def test_a_bucket_that_does_not_exist_is_named_and_is_not_an_empty_one(s3, file, use):
    with pytest.raises(ArtifactError, match=r"^s3://no-such-bucket/x.* cannot be used: .*NoSuchBucket"):
        use(open_store("s3://no-such-bucket/x"), file)


@pytest.mark.parametrize("use", EVERY_USE)
def test_wrong_credentials_are_an_error_that_does_not_tell_them(s3, endpoint, file, use):
    store = open_store(s3)
    ask(f"{endpoint}/moto-api/reset-auth", b"0")
    try:
        with pytest.raises(ArtifactError) as refusal:
            use(store, file)
    finally:
        ask(f"{endpoint}/moto-api/reset-auth", b"inf")
    message = str(refusal.value)
    assert message.startswith(f"s3://{BUCKET}/") and ("InvalidAccessKeyId" in message or "Forbidden" in message)
    assert "a-secret" not in message and "an-id" not in message


@pytest.mark.parametrize("use", EVERY_USE)
def test_no_credentials_at_all_are_an_error(s3, file, monkeypatch, use):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    expected = rf"^s3://{BUCKET}/.* cannot be used: it needs credentials: AWS_.*: Unable to locate credentials"
    with pytest.raises(ArtifactError, match=expected):
        use(open_store(s3), file)


@pytest.mark.parametrize("use", EVERY_USE)
def test_an_endpoint_that_nobody_listens_at_is_named_with_the_bucket(s3, file, monkeypatch, use):
    # Reserved, and so never listened at.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(ArtifactError, match=rf"^s3://{BUCKET}/.* cannot be used: .*http://127\.0\.0\.1:1/"):
        use(open_store(s3), file)


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        pytest.param("AWS_ENDPOINT_URL_S3", "not a url", "Invalid endpoint: not a url", id="the endpoint"),
        pytest.param("S3_ADDRESSING_STYLE", "sideways", "sideways", id="the addressing style"),
        pytest.param("AWS_PROFILE", "nobody", "nobody", id="the profile"),
    ],
)
def test_a_setting_that_boto3_refuses_is_an_error_that_names_the_bucket(s3, monkeypatch, variable, value, sentence):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(ArtifactError) as refusal:
        open_store(s3)
    assert str(refusal.value).startswith(f"s3://{BUCKET}") and sentence in str(refusal.value)


def test_a_bucket_that_refuses_a_deletion_is_an_error_and_not_a_success(s3, monkeypatch):
    store = S3Store(s3)
    fill(store, "a")
    refused = {"Errors": [{"Key": "a", "Code": "AccessDenied", "Message": "it is locked"}]}
    monkeypatch.setattr(store._client, "delete_objects", lambda **_: refused)
    with pytest.raises(ArtifactError, match=rf"^s3://{BUCKET}/a cannot be deleted: it is locked$"):
        store.delete("a")


@pytest.mark.parametrize(("style", "host"), [("path", "s3.test"), ("virtual", f"{BUCKET}.s3.test")])
def test_endpoint_region_and_addressing_come_from_the_environment(s3, monkeypatch, style, host):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.test")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("S3_ADDRESSING_STYLE", style)

    url = S3Store(s3)._client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "k"})

    assert url.startswith(f"https://{host}/{f'{BUCKET}/' if style == 'path' else ''}k?")
    assert "eu-north-1" in url or S3Store(s3)._client.meta.region_name == "eu-north-1"


# --- URIs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("", "the storage URI must start with s3:// or file:///, or be a path, got ''"),
        ("gs://bucket/x", "the storage URI must start with s3:// or file:///, or be a path, got 'gs://bucket/x'"),
        ("file://host/x", "the storage URI must start with s3:// or file:///, or be a path, got 'file://host/x'"),
        ("s3://", "the storage URI must name a bucket, got 's3://'"),
        ("s3:///x", "the storage URI must name a bucket, got 's3:///x'"),
    ],
)
def test_a_uri_that_is_no_store_is_refused(uri, sentence):
    with pytest.raises(ArtifactError) as refusal:
        open_store(uri)
    assert str(refusal.value) == sentence


@pytest.mark.parametrize("uri", ["", "/", "s3://bucket", "s3://bucket/", "file://"])
def test_a_uri_that_names_no_object_is_refused(uri):
    with pytest.raises(ArtifactError) as refusal:
        open_object(uri)
    assert str(refusal.value) == f"the URI of an object must name a store and a key, got {uri!r}"


@pytest.mark.parametrize(
    ("uri", "store", "key"),
    [
        ("/data/pages.jsonl", "/data", "pages.jsonl"),
        ("/pages.jsonl", "/", "pages.jsonl"),
        ("pages.jsonl", ".", "pages.jsonl"),
        ("data/pages/", "data", "pages"),
        ("file:///data/pages.jsonl", "/data", "pages.jsonl"),
        ("file:///pages.jsonl", "/", "pages.jsonl"),
    ],
)
def test_the_uri_of_an_object_is_its_store_and_its_key(uri, store, key):
    assert open_object(uri) == (DirectoryStore(store), key)


def test_the_uri_of_an_object_in_a_bucket_is_its_store_and_its_key(s3):
    opened, key = open_object(f"{s3}/shop/progress.json")
    assert (opened.uri, key) == (f"{s3}/shop", "progress.json")
    opened, key = open_object(f"{s3}/progress.json")
    assert (opened.uri, key) == (s3, "progress.json")


def test_joining_never_doubles_a_slash():
    assert join("s3://b/p/", "/a/", "b") == "s3://b/p/a/b"
    assert join("runs", "a") == "runs/a"
