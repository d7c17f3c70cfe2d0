"""The store on buckets of other makers: one set of sentences for every kind of server."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from builders.odd_buckets import OddBucket, Oddity
from builders.tiny_study import build_study
from trial_trainer import artifacts
from trial_trainer.artifacts import ArtifactError, DirectoryStore, S3Access, S3Store, open_store
from trial_trainer.contract import ExitCode, RungMeasurement, from_json
from trial_trainer.stop import StopRequest
from trial_trainer.training.train import train

MEBIBYTE = 1024 * 1024


@pytest.fixture(
    scope="module", params=[(), *[(oddity,) for oddity in Oddity]], ids=lambda odd: "".join(odd) or "as AWS does"
)
def one_server(request: pytest.FixtureRequest) -> Iterator[OddBucket]:
    server = OddBucket(*request.param)
    yield server
    server.close()


@pytest.fixture
def server(one_server: OddBucket) -> OddBucket:
    """A server without objects, of each kind."""
    one_server.forget()
    return one_server


def a_store(server: OddBucket, prefix: str = "a study/run=1") -> S3Store:
    access = S3Access(
        is_from_environment=False,
        endpoint=server.url,
        addressing_style="path",
        access_key_id="an-id",
        secret_access_key="a-secret",
        attempts=3,
    )
    return S3Store(f"s3://runs/{prefix}", access)


def lead_to(server: OddBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the environment lead to a server, as a trial's pod has it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("S3_ADDRESSING_STYLE", "path")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.fixture
def store(server: OddBucket, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setattr(artifacts, "CONFLICT_WAITS_SECONDS", (0.0, 0.0))
    return a_store(server)


def test_what_is_written_once_stays_as_it_was_first(store: S3Store) -> None:
    assert store.write_new("measurement.json", b"first") is True
    assert store.read("measurement.json") == b"first"
    assert store.write_new("measurement.json", b"second") is False
    assert store.read("measurement.json") == b"first"


def test_an_object_is_written_read_and_replaced(store: S3Store) -> None:
    assert store.read("latest.json") is None
    store.write("latest.json", b"1")
    store.write("latest.json", b"2")
    assert store.read("latest.json") == b"2"


@pytest.mark.parametrize("size", [0, 10, 9 * MEBIBYTE], ids=["empty", "small", "in parts"])
def test_a_file_goes_up_and_comes_down(store: S3Store, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))

    store.upload("adapter/weights", source)

    assert store.download("adapter/weights", target) is True
    assert target.read_bytes() == source.read_bytes()
    assert store.download("adapter/none", tmp_path / "none") is False
    assert not (tmp_path / "none").exists()
    assert [path.name for path in target.parent.iterdir()] == ["target"]


KEYS = ["a b/ü#1?x=%20&+.json", "checkpoints/1/a", "checkpoints/1/b", "checkpoints/10/a", "checkpoints/2/a", "z<&>\"'"]


def test_more_keys_than_a_page_holds_are_listed_whatever_their_letters(store: S3Store, server: OddBucket) -> None:
    for key in KEYS:
        store.write(key, b"")
    server.objects["beside/x"] = server.objects["a study/run=10/x"] = b""

    # Where a server does not say that it encodes keys, the prefix shows it.
    assert list(store.list()) == KEYS
    assert list(store.list("checkpoints/1")) == ["checkpoints/1/a", "checkpoints/1/b", "checkpoints/10/a"]
    assert list(store.list("none")) == []


def test_deleting_spares_what_lies_beside(store: S3Store, server: OddBucket) -> None:
    keys = [key for key in KEYS if key.startswith("checkpoints/")]
    for key in keys:
        store.write(key, b"")
    server.objects["beside/checkpoints/1/a"] = b""

    assert store.delete("checkpoints/1") == 2
    assert list(store.list()) == ["checkpoints/10/a", "checkpoints/2/a"]
    assert store.delete("") == 2
    assert list(server.objects) == ["beside/checkpoints/1/a"]
    assert store.delete("") == 0


def test_a_bucket_that_is_not_there_is_no_empty_one(server: OddBucket, tmp_path: Path) -> None:
    store = a_store(server)
    store._bucket = "nowhere"
    for use in (
        lambda: store.read("k"),
        lambda: store.write("k", b""),
        lambda: store.write_new("k", b""),
        lambda: store.download("k", tmp_path / "k"),
        lambda: list(store.list()),
        lambda: store.delete("k"),
    ):
        with pytest.raises(ArtifactError, match="NoSuchBucket"):
            use()


def test_a_bucket_that_comes_back_while_it_is_asked_has_lost_nothing(
    server: OddBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_store(server)
    store.write("k", b"kept")
    client, bucket = store._client._client, store._bucket
    ask = client._make_api_call

    def ask_of_a_bucket_that_comes_back(operation: str, parameters: dict[str, object]) -> object:
        is_away = operation in ("GetObject", "HeadObject")
        return ask(operation, parameters | {"Bucket": "nowhere" if is_away else bucket})

    monkeypatch.setattr(client, "_make_api_call", ask_of_a_bucket_that_comes_back)
    for use in (lambda: store.read("k"), lambda: store.download("k", tmp_path / "k")):
        with pytest.raises(ArtifactError, match=r"NoSuchBucket|404"):
            use()


# --- Put once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "oddity",
    [
        Oddity.CONDITION_501,
        Oddity.CONDITION_400,
        Oddity.CONDITION_SPOILS_SIGNATURE,
        Oddity.ALWAYS_409,
        Oddity.ALWAYS_412,
    ],
)
def test_a_server_without_conditions_is_named_once_an_object_was_put_without_one(
    oddity: Oddity, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(artifacts, "CONFLICT_WAITS_SECONDS", (0.0, 0.0))
    server = OddBucket(oddity)
    assert a_store(server).write_new("measurement.json", b"first")
    server.close()
    assert [r.getMessage() for r in caplog.records] == [
        "the server of s3://runs takes no If-None-Match: measurement.json is written without it"
    ]


def test_a_conflict_where_nothing_stands_is_tried_again_with_the_condition(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(artifacts, "CONFLICT_WAITS_SECONDS", (0.0, 0.0))
    server = OddBucket(Oddity.CONFLICT_ONCE)
    assert a_store(server).write_new("measurement.json", b"first")
    server.close()
    assert (server.seen["PUT object"], caplog.records) == (2, [])


def test_whose_object_was_replaced_at_the_same_moment_learns_that_he_was_not_first() -> None:
    server = OddBucket(Oddity.CONDITION_IGNORED)
    store = a_store(server, "one-at-a-time")

    def interfere(**_: object) -> None:
        server.objects["one-at-a-time/measurement.json"] = b"theirs"

    store._client.meta.events.register("after-call.s3.PutObject", interfere)
    assert store.write_new("measurement.json", b"mine") is False
    assert store.read("measurement.json") == b"theirs"
    server.close()


def test_a_put_whose_answer_was_lost_is_still_the_writers_own() -> None:
    server = OddBucket(Oddity.PUT_IS_UNANSWERED)
    assert a_store(server).write_new("measurement.json", b"mine") is True
    server.close()
    assert server.seen["PUT object"] == 2


def test_a_file_system_without_hard_links_keeps_the_first_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    store = DirectoryStore(str(tmp_path))
    assert store.write_new("a/measurement.json", b"first") is True
    assert store.write_new("a/measurement.json", b"second") is False
    assert store.read("a/measurement.json") == b"first"
    assert list(store.list()) == ["a/measurement.json"]


# --- A trial ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trial_saves_cleans_up_and_is_read_once_on_a_server_that_knows_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oddities = (Oddity.CONDITION_501, Oddity.DELETE_WANTS_MD5, Oddity.NO_CHECKSUMS, Oddity.LIST_V1, Oddity.NO_ETAG)
    server = OddBucket(*oddities)
    lead_to(server, monkeypatch)
    # As after five minutes, at every step.
    monkeypatch.setattr("trial_trainer.training.train.CHECKPOINT_SECONDS", -1)
    config = replace(build_study(tmp_path), output="s3://runs/t000", total_steps=3, stop_step=3)

    assert train(config, StopRequest()) is ExitCode.STOP_STEP_REACHED

    measurement = server.objects["t000/measurement.json"]
    checkpoint = from_json(RungMeasurement, measurement).checkpoint
    assert {key.split("/")[2] for key in server.objects if "/checkpoints/" in key} == {checkpoint.rpartition("/")[2]}
    # A second attempt finds it, and a third that did not look does not replace it.
    assert train(config, StopRequest()) is ExitCode.STOP_STEP_REACHED
    assert open_store(config.output).write_new("measurement.json", b"{}") is False
    assert server.objects["t000/measurement.json"] == measurement
    server.close()


# --- Answers that are none ----------------------------------------------------------------------------------------


def test_a_list_that_repeats_its_page_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    server = OddBucket()
    store = a_store(server)
    same = {"IsTruncated": True, "NextContinuationToken": "t", "Contents": [{"Key": "a study/run=1/x"}]}
    monkeypatch.setattr(store._client, "list_objects_v2", lambda **_: same)
    with pytest.raises(ArtifactError, match=r"^s3://runs/a study/run=1/ cannot be listed: its server repeats a page$"):
        list(store.list())
    server.close()


def test_a_folder_of_a_console_is_no_object_and_goes_with_the_rest() -> None:
    server = OddBucket()
    store = a_store(server, "models")
    server.objects |= {"models/": b"", "models/tiny/": b"", "models/tiny/config.json": b"{}"}

    assert list(store.list()) == ["tiny/config.json"]
    store.delete("")
    assert server.objects == {}
    server.close()


def test_a_page_for_people_where_a_list_should_be_is_an_error_of_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    server = OddBucket()
    monkeypatch.setattr(
        "builders.odd_buckets._Handler._list", lambda self, _: self._say(200, b"<html><br></body></html>")
    )
    with pytest.raises(ArtifactError, match=r"^s3://runs/.* cannot be used: "):
        list(a_store(server).list())
    server.close()


def test_no_client_of_ours_sends_what_only_newer_servers_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the environment or a configuration asks for it."""
    server = OddBucket(Oddity.NO_CHECKSUMS, Oddity.DELETE_WANTS_MD5)
    lead_to(server, monkeypatch)
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    store = open_store("s3://runs/x")
    (tmp_path / "file").write_bytes(b"x" * 9 * MEBIBYTE)

    store.upload("a", tmp_path / "file")
    store.write("b", b"")
    store.write_new("c", b"")

    assert store.delete("") == 3
    assert server.seen["POST bucket delete"] == 1
    assert server.objects == {}
    server.close()
