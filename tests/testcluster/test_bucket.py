"""The S3 server is a real one: conditions on writes hold, and users have the rights that the policies give them."""

from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from testcluster.bucket import Request, S3Server


def code_of(error: pytest.ExceptionInfo[ClientError]) -> str:
    return str(error.value.response["Error"]["Code"])


def read(client: Any, key: str) -> bytes:
    content: bytes = client.get_object(Bucket="studies", Key=key)["Body"].read()
    return content


def test_an_object_that_must_be_new_is_written_once(s3: S3Server) -> None:
    s3.make_bucket("studies")
    client = s3.client()
    client.put_object(Bucket="studies", Key="measurement.json", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket="studies", Key="measurement.json", Body=b"second", IfNoneMatch="*")
    assert code_of(refused) == "PreconditionFailed"
    assert read(client, "measurement.json") == b"first"


def test_a_user_is_denied_what_no_policy_gives_them(s3: S3Server) -> None:
    alice, bob = s3.add_user("alice"), s3.add_user("bob")
    s3.make_bucket("studies", users=[alice])
    s3.client(alice).put_object(Bucket="studies", Key="a", Body=b"mine")
    for call in (
        lambda: read(s3.client(bob), "a"),
        lambda: s3.client(bob).put_object(Bucket="studies", Key="a", Body=b"yours"),
        lambda: s3.client(bob).list_objects_v2(Bucket="studies"),
        lambda: s3.client(bob).delete_object(Bucket="studies", Key="a"),
    ):
        with pytest.raises(ClientError) as refused:
            call()
        assert code_of(refused) == "AccessDenied"
    assert read(s3.client(alice), "a") == b"mine"


def test_a_user_may_be_held_to_a_prefix(s3: S3Server) -> None:
    alice = s3.add_user("alice")
    s3.make_bucket("studies", users=[alice], prefix="shop/")
    client = s3.client(alice)
    client.put_object(Bucket="studies", Key="shop/a", Body=b"mine")
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket="studies", Key="other/a", Body=b"not mine")
    assert code_of(refused) == "AccessDenied"


def test_a_user_who_comes_while_it_runs_is_known_at_once(s3: S3Server) -> None:
    s3.make_bucket("studies")
    late = s3.add_user("late")
    with pytest.raises(ClientError) as refused:
        s3.client(late).list_objects_v2(Bucket="studies")
    assert code_of(refused) == "AccessDenied"  # known, and without rights


def test_objects_users_and_address_survive_a_kill(s3: S3Server) -> None:
    alice = s3.add_user("alice")
    s3.make_bucket("studies", users=[alice])
    client = s3.client(alice)
    client.put_object(Bucket="studies", Key="a", Body=b"mine")
    s3.kill()
    with pytest.raises(EndpointConnectionError):
        read(client, "a")
    s3.start()
    assert read(client, "a") == b"mine"


def test_a_missing_bucket_says_so(s3: S3Server) -> None:
    with pytest.raises(ClientError) as refused:
        s3.client().list_objects_v2(Bucket="nowhere")
    assert code_of(refused) == "NoSuchBucket"


def test_every_request_is_noted(s3: S3Server) -> None:
    alice = s3.add_user("alice")
    s3.make_bucket("studies", users=[alice])
    client = s3.client(alice)
    client.put_object(Bucket="studies", Key="a", Body=b"")
    with pytest.raises(ClientError):
        read(client, "b")
    s3.stop()  # everything is written down
    expected = [Request("alice", "PutObject", "a", "200"), Request("alice", "GetObject", "b", "404")]
    assert [request for request in s3.requests() if request.user == "alice"] == expected
