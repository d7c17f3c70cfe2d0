"""Checkpoints: the newest whole one is found, a damaged one is passed over, another run's is refused."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from trial_trainer.artifacts import DirectoryStore
from trial_trainer.errors import StudyError
from trial_trainer.training.checkpoint import (
    Identity,
    RunState,
    UntrainedLoss,
    delete_older,
    find_checkpoint,
    restore,
    save_checkpoint,
)

IDENTITY = Identity(
    seed=3, arm={"learning_rate": 1e-4, "lora_rank": 8}, total_steps=100, dataset="d1", ranks=1, digest="a"
)


def trained(seed=0, names=("a", "b")):
    """Return parameters and an optimizer that has taken a step."""
    torch.manual_seed(seed)
    parameters = {name: nn.Parameter(torch.randn(3, 4)) for name in names}
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=0.1)
    sum(parameter.square().sum() for parameter in parameters.values()).backward()
    optimizer.step()
    return parameters, optimizer


def save(store, step, attempt="aaaa", seed=0, identity=IDENTITY):
    parameters, optimizer = trained(seed)
    state = RunState(
        identity=identity,
        step=step,
        samples_seen=8 * step,
        untrained=UntrainedLoss(mean=2.5, deviation=0.5),
        losses=(2.5, 0.1),
        row_tokens=(1536,),
    )
    return save_checkpoint(store, attempt=attempt, state=state, parameters=parameters, optimizer=optimizer)


@pytest.fixture
def store(tmp_path):
    return DirectoryStore(str(tmp_path))


def test_what_was_saved_is_restored_to_the_bit(store):
    save(store, 20, seed=1)
    expected, expected_optimizer = trained(1)
    parameters, optimizer = trained(2)

    found = find_checkpoint(store, IDENTITY)
    restore(found, parameters, optimizer)

    assert (found.state.step, found.state.samples_seen, found.state.losses) == (20, 160, (2.5, 0.1))
    for name, parameter in parameters.items():
        assert torch.equal(parameter, expected[name])
        for field, value in expected_optimizer.state[expected[name]].items():
            assert torch.equal(optimizer.state[parameter][field], value)


def test_nothing_saved_is_nothing_found(store):
    assert find_checkpoint(store, IDENTITY) is None


def test_the_newest_step_wins_whichever_attempt_wrote_it(store):
    save(store, 9, attempt="zzzz")
    save(store, 100, attempt="aaaa")

    assert find_checkpoint(store, IDENTITY).state.step == 100


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        pytest.param(999_990, 1_000_010, id="a digit more than the padding"),
        pytest.param(9_999_999, 10_000_000, id="two digits more"),
        pytest.param(2, 1_000_000, id="one digit and seven"),
        pytest.param(0, 1, id="the first ones"),
    ],
)
def test_steps_are_numbers_and_not_text(store, older, newer):
    oldest = save(store, older)
    keep = save(store, newer)

    assert find_checkpoint(store, IDENTITY).state.step == newer
    delete_older(store, attempt="aaaa", keep=oldest)
    assert find_checkpoint(store, IDENTITY).state.step == newer
    delete_older(store, attempt="aaaa", keep=keep)
    assert {key.rpartition("/")[0] for key in store.list("checkpoints/")} == {keep}


def test_what_lies_beside_checkpoints_is_neither_the_newest_nor_deleted(store):
    save(store, 10)
    keep = save(store, 20)
    for name in ("final-aaaa", "-aaaa", "²0-aaaa", "9" * 30 + "-aaaa", "notes"):
        store.write(f"checkpoints/{name}/manifest.json", b"{}")

    assert find_checkpoint(store, IDENTITY).state.step == 20
    delete_older(store, attempt="aaaa", keep=keep)
    assert len(list(store.list("checkpoints/"))) == 4 + 5


def test_the_checkpoints_of_another_attempt_whose_name_ends_alike_stay(store):
    save(store, 10, attempt="b-aaaa")
    keep = save(store, 20, attempt="aaaa")

    delete_older(store, attempt="aaaa", keep=keep)

    assert (store.root / "checkpoints/000010-b-aaaa/manifest.json").is_file()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def forget_the_files(path):
    path.write_text(json.dumps({"step": 20, "sha256": {}}))


def forget_a_file(path):
    manifest = json.loads(path.read_text())
    del manifest["sha256"]["optimizer.safetensors"]
    path.write_text(json.dumps(manifest))


def no_object(path):
    path.write_text("[]")


FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json")
DAMAGE = [(file, harm) for file in FILES for harm in (truncate, flip_a_bit, empty, remove)] + [
    ("manifest.json", harm) for harm in (truncate, empty, remove, forget_the_files, forget_a_file, no_object)
]


@pytest.mark.parametrize(("file", "harm"), DAMAGE, ids=[f"{harm.__name__} in {file}" for file, harm in DAMAGE])
def test_a_damaged_checkpoint_is_passed_over_for_the_next_older_whole_one(file, harm, store):
    save(store, 10)
    newest = save(store, 20)
    harm(store.root / newest / file)

    assert find_checkpoint(store, IDENTITY).state.step == 10
    harm(store.root / "checkpoints/000010-aaaa" / file)
    assert find_checkpoint(store, IDENTITY) is None


def test_a_half_deleted_checkpoint_is_not_taken_for_whole(store):
    save(store, 10)
    newest = save(store, 20)
    store.delete(f"{newest}/manifest.json")
    (store.root / newest / "state.json").unlink()

    assert find_checkpoint(store, IDENTITY).state.step == 10


def test_deleting_older_ones_keeps_the_newest_and_those_of_other_attempts(store):
    save(store, 10, attempt="aaaa")
    save(store, 12, attempt="bbbb")
    keep = save(store, 20, attempt="aaaa")

    delete_older(store, attempt="aaaa", keep=keep)

    left = {key.split("/")[1] for key in store.list("checkpoints/")}
    assert left == {"000012-bbbb", "000020-aaaa"}


OTHERS = {
    "another seed": ({"seed": 4}, "seed must be 4, got 3"),
    "another rate": ({"arm": {"learning_rate": 2e-4, "lora_rank": 8}}, "arm must be"),
    "another rank": ({"arm": {"learning_rate": 1e-4, "lora_rank": 16}}, "arm must be"),
    "a parameter more": ({"arm": {"learning_rate": 1e-4, "lora_rank": 8, "lora_alpha": 16}}, "arm must be"),
    "a parameter less": ({"arm": {"learning_rate": 1e-4}}, "arm must be"),
    "another length": ({"total_steps": 200}, "total_steps must be 200, got 100"),
    "another dataset": ({"dataset": "d2"}, "dataset must be 'd2', got 'd1'"),
    "another world size": ({"ranks": 2}, "ranks must be 2, got 1"),
    "another digest": ({"digest": "b"}, "digest must be 'b', got 'a'"),
    "several at once": ({"seed": 4, "ranks": 2}, "seed must be 4, got 3; ranks must be 2, got 1"),
}


@pytest.mark.parametrize(("change", "sentence"), OTHERS.values(), ids=OTHERS)
def test_another_runs_checkpoint_is_passed_over_and_it_is_said_why(change, sentence, store, caplog):
    key = save(store, 20)

    assert find_checkpoint(store, replace(IDENTITY, **change)) is None

    assert f"checkpoint {key} of {store.uri} belongs to another run and is passed over" in caplog.text
    assert sentence in caplog.text


def test_an_older_checkpoint_of_this_run_wins_over_a_newer_one_of_another(store):
    save(store, 10)
    save(store, 20, attempt="bbbb", identity=replace(IDENTITY, digest="other"))

    assert find_checkpoint(store, IDENTITY).state.step == 10
    assert find_checkpoint(store, replace(IDENTITY, digest="other")).state.step == 20


def test_a_checkpoint_without_a_digest_is_known_by_its_other_fields(store):
    save(store, 20, identity=replace(IDENTITY, digest=""))

    assert find_checkpoint(store, IDENTITY).state.step == 20
    assert find_checkpoint(store, replace(IDENTITY, seed=4)) is None


def test_an_adapter_with_other_layers_is_refused_and_nothing_is_changed(store):
    save(store, 20)
    parameters, optimizer = trained(2, names=("a", "c"))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    with pytest.raises(StudyError, match="its adapter has other layers"):
        restore(find_checkpoint(store, IDENTITY), parameters, optimizer)

    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())
