"""The trial contract as JSON: what is written is what is read, and what is wrong is said field by field."""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trial_trainer import contract
from trial_trainer.codec import LARGEST_COUNT
from trial_trainer.contract import (
    BaseModel,
    Candidate,
    ContractError,
    FinalEvaluationConfig,
    LabelSource,
    Metric,
    MissingLabel,
    Precision,
    PrepareConfig,
    Progress,
    RungMeasurement,
    Split,
    TrainerSettings,
    TrialConfig,
    digest_of,
    from_json,
    to_json,
)

EVERY_TYPE = [
    value
    for value in vars(contract).values()
    if dataclasses.is_dataclass(value) and getattr(value, "__module__", "") == contract.__name__
]
VERSIONED = [cls for cls in EVERY_TYPE if "contract_version" in {field.name for field in dataclasses.fields(cls)}]


# --- Round trip -------------------------------------------------------------------------------------------------------


def values_of(kind: Any, name: str = "") -> st.SearchStrategy[Any]:
    """Return a strategy for a field's annotation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if name == "contract_version":
        return st.just(contract.VERSION)
    if name == "temperature":
        return st.none() | st.floats(0, 2)
    if dataclasses.is_dataclass(kind):
        return instances_of(kind)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return st.dictionaries(st.text(max_size=4), values_of(arguments[1]), max_size=2)
    if origin is not None:
        return st.one_of([values_of(argument) for argument in arguments])
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return st.sampled_from(kind)
    # Numbers that no rule refuses; the rules have a table of their own.
    return {
        str: st.text(max_size=6),
        int: st.integers(1, 1) if name in {"stop_step", "warmup_percent"} else st.integers(1, LARGEST_COUNT),
        float: st.just(0.0) | st.floats(contract.SMALLEST, contract.LARGEST),
        bool: st.booleans(),
        type(None): st.none(),
    }[kind]


def instances_of(cls: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for a dataclass of the contract."""
    hints = typing.get_type_hints(cls)
    return st.fixed_dictionaries({name: values_of(hint, name) for name, hint in hints.items()}).map(lambda v: cls(**v))


@pytest.mark.parametrize("cls", EVERY_TYPE, ids=lambda cls: cls.__name__)
def test_what_is_written_is_what_is_read(cls):
    @settings(max_examples=15, database=None)
    @given(instances_of(cls))
    def holds(value: Any) -> None:
        text = to_json(value)
        read = from_json(cls, text)
        assert read == value
        assert hash_types(read) == hash_types(value)
        assert to_json(read) == text

    holds()


def hash_types(value: Any) -> Any:
    """Return the types of a value's leaves: 1 equals 1.0 and True, and is neither."""
    if dataclasses.is_dataclass(value):
        return [hash_types(item) for item in vars(value).values()]
    if isinstance(value, Mapping):
        return {name: hash_types(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [hash_types(item) for item in value]
    return type(value)


def test_an_arm_keeps_its_numbers_to_the_last_digit():
    arm = {"learning_rate": 0.1 + 0.2, "tiny": 5e-324, "lora_rank": 16, "name": "1e-3"}
    read = from_json(TrialConfig, to_json(dataclasses.replace(a_trial(), arm=arm))).arm
    assert [(name, repr(value)) for name, value in sorted(read.items())] == [
        (name, repr(value)) for name, value in sorted(arm.items())
    ]


def test_what_has_a_default_may_be_left_out():
    raw = json.loads(to_json(a_trial()))
    for name in (
        *("evaluate_at_steps", "resume_from", "progress", "contract_version"),
        *("dataset_fingerprint", "digest"),
    ):
        del raw[name]
    for name in ("precision", "target_modules", "rs_lora", "warmup_percent", "weight_decay", "processes"):
        del raw["trainer"][name]
    assert from_json(TrialConfig, json.dumps(raw)) == a_trial()


# --- Digests ---------------------------------------------------------------------------------------------------------

PLACES = {
    "study": "other",
    "trial": "t007",
    "rung": 1,
    "dataset": "/elsewhere/dataset",
    "output": "/elsewhere",
    "stop_step": 100,
    "evaluate_at_steps": (10,),
    "resume_from": "/runs/t003/rungs/0",
    "progress": "/runs/progress.json",
    "digest": "0123",
}
DECIDING = {
    "seed": 1,
    "arm": {"learning_rate": 2e-3, "lora_rank": 8},
    "base_model": BaseModel(uri="/model", revision="main"),
    "total_steps": 101,
    "train_samples": 64,
    "balanced": True,
    "is_augmented": False,
    "dataset_fingerprint": "00ff",
    "trainer": TrainerSettings(epochs=4, max_length_tokens=256, rs_lora=True),
}


def test_every_field_of_a_trial_is_known_to_decide_its_result_or_not():
    assert {*PLACES, *DECIDING, "contract_version"} == {f.name for f in dataclasses.fields(TrialConfig)}


@pytest.mark.parametrize(("name", "value"), PLACES.items(), ids=PLACES)
def test_a_digest_does_not_depend_on_names_places_and_how_a_run_is_cut(name, value):
    assert digest_of(dataclasses.replace(a_trial(), **{name: value})) == digest_of(a_trial())


@pytest.mark.parametrize(("name", "value"), DECIDING.items(), ids=DECIDING)
def test_a_digest_depends_on_all_that_decides_the_result(name, value):
    assert digest_of(dataclasses.replace(a_trial(), **{name: value})) != digest_of(a_trial())


@pytest.mark.parametrize(
    "change", [{"precision": Precision.FLOAT32}, {"target_modules": ("q_proj",)}, {"nodes": 2}, {"epochs": 9}]
)
def test_a_digest_depends_on_the_trainers_settings(change):
    trainer = dataclasses.replace(a_trial().trainer, **change)
    assert digest_of(dataclasses.replace(a_trial(), trainer=trainer)) != digest_of(a_trial())


def test_a_digest_is_the_same_after_a_round_trip_and_in_every_version():
    trial = a_trial()
    assert digest_of(from_json(TrialConfig, to_json(trial))) == digest_of(trial)
    # Written down in checkpoints and measurements: a change of it lets every running study train anew.
    assert digest_of(trial) == "3b6d059ca2838322"


def test_what_a_missing_label_means_is_in_a_dataset_digest_unless_it_is_unknown():
    config = PrepareConfig(
        study="toy",
        source="/pages",
        attributes=("name",),
        labels_from=LabelSource.GIVEN,
        split=Split(),
        seed=0,
        base_model=BaseModel(uri="/model"),
        max_length_tokens=512,
        dataset="/runs/dataset",
    )
    # As it was before there was such a field.
    assert digest_of(config) == "4f9398e6b62cba2a"
    assert digest_of(dataclasses.replace(config, missing_labels=MissingLabel.ABSENT)) != digest_of(config)


def test_a_final_evaluation_digest_depends_on_who_is_evaluated():
    config = FinalEvaluationConfig(
        study="toy",
        winner=Candidate(trial="t003", adapter="/runs/t003/adapter", digest="a"),
        baseline=None,
        base_model=BaseModel(uri="/model"),
        dataset="/runs/dataset",
        output="/runs/final evaluation",
        trainer=a_trial().trainer,
    )
    other = dataclasses.replace(config, winner=dataclasses.replace(config.winner, digest="b"))
    assert digest_of(other) != digest_of(config)
    moved = dataclasses.replace(config, winner=dataclasses.replace(config.winner, adapter="/elsewhere"))
    assert digest_of(moved) == digest_of(config)


# --- Refusals ---------------------------------------------------------------------------------------------------------


def a_trial() -> TrialConfig:
    """Return a rung that any trainer could run."""
    return TrialConfig(
        study="toy",
        trial="t003",
        rung=0,
        seed=0,
        arm={"learning_rate": 1e-3, "lora_rank": 8},
        base_model=BaseModel(uri="/model"),
        dataset="/runs/dataset",
        output="/runs/t003/rungs/0",
        total_steps=100,
        stop_step=20,
        trainer=TrainerSettings(epochs=3, max_length_tokens=512),
    )


def changed(**changes: Any) -> str:
    """Return the trial's JSON with fields set by path (`trainer__epochs`); `...` leaves one out."""
    raw = json.loads(to_json(a_trial()))
    for path, value in changes.items():
        *parents, name = path.split("__")
        inside = raw
        for parent in parents:
            inside = inside[parent]
        if value is ...:
            del inside[name]
        else:
            inside[name] = value
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("[]", "TrialConfig must be an object, got []", id="a list"),
        pytest.param("null", "TrialConfig must be an object, got None", id="null"),
        pytest.param(changed(study=...), "TrialConfig.study must be given", id="a field left out"),
        pytest.param(changed(trainer__epochs=...), "TrialConfig.trainer.epochs must be given", id="one further in"),
        pytest.param(changed(stopstep=20), "TrialConfig.stopstep is not a field", id="a field misspelt"),
        pytest.param(
            changed(trainer__lr=1), "TrialConfig.trainer.lr is not a field", id="a field that belongs elsewhere"
        ),
        pytest.param(changed(study=3), "TrialConfig.study must be a string, got 3", id="a number as a name"),
        pytest.param(changed(study=None), "TrialConfig.study must be a string, got None", id="null as a name"),
        pytest.param(changed(seed="0"), "TrialConfig.seed must be a whole number, got '0'", id="a quoted number"),
        pytest.param(changed(seed=0.5), "TrialConfig.seed must be a whole number, got 0.5", id="half a seed"),
        pytest.param(changed(seed=True), "TrialConfig.seed must be a whole number, got True", id="true as a number"),
        pytest.param(
            changed(rung=-1), "TrialConfig.rung must be from 0 to 9007199254740992, got -1", id="a rung below the first"
        ),
        pytest.param(changed(total_steps=0), "TrialConfig.total_steps must be at least 1, got 0", id="no steps"),
        pytest.param(
            changed(stop_step=0), "TrialConfig.stop_step must be from 1 to total_steps 100, got 0", id="no way to go"
        ),
        pytest.param(
            changed(stop_step=101), "TrialConfig.stop_step must be from 1 to total_steps 100, got 101", id="too far"
        ),
        pytest.param(changed(arm=[]), "TrialConfig.arm must be an object, got []", id="an arm as a list"),
        pytest.param(
            changed(arm={"lr": [1]}), "TrialConfig.arm['lr'] must be a number or a string, got [1]", id="a list in it"
        ),
        pytest.param(
            changed(arm={"lr": None}), "TrialConfig.arm['lr'] must be a number or a string, got None", id="null in it"
        ),
        pytest.param(
            changed(arm={"x": True}), "TrialConfig.arm['x'] must be a number or a string, got True", id="true in it"
        ),
        pytest.param(
            changed(arm={"lr": math.nan}), "TrialConfig.arm['lr'] must be finite, got nan", id="not a number in it"
        ),
        pytest.param(
            changed(arm={"lr": -math.inf}), "TrialConfig.arm['lr'] must be finite, got -inf", id="infinity in it"
        ),
        pytest.param(
            changed(evaluate_at_steps=10), "TrialConfig.evaluate_at_steps must be a list, got 10", id="one step, bare"
        ),
        pytest.param(
            changed(evaluate_at_steps=[10, "20"]),
            "TrialConfig.evaluate_at_steps[1] must be a whole number, got '20'",
            id="an item of a list",
        ),
        pytest.param(
            changed(resume_from=3), "TrialConfig.resume_from must be a string, got 3", id="what may be null, wrong"
        ),
        pytest.param(
            changed(base_model="/model"), "TrialConfig.base_model must be an object, got '/model'", id="a bare URI"
        ),
        pytest.param(
            changed(trainer__precision="bf16"),
            "TrialConfig.trainer.precision must be one of BFloat16, Float32, got 'bf16'",
            id="a precision that is not one",
        ),
        pytest.param(
            changed(trainer__precision=["BFloat16"]),
            "TrialConfig.trainer.precision must be one of BFloat16, Float32, got ['BFloat16']",
            id="a list of precisions",
        ),
        pytest.param(
            changed(trainer__rs_lora=1), "TrialConfig.trainer.rs_lora must be true or false, got 1", id="one as true"
        ),
        pytest.param(
            changed(trainer__target_modules=7),
            "TrialConfig.trainer.target_modules must be a string or a list, got 7",
            id="neither of two kinds",
        ),
        pytest.param(
            changed(trainer__target_modules=["q_proj", 7]),
            "TrialConfig.trainer.target_modules[1] must be a string, got 7",
            id="the second of two kinds, with a wrong item",
        ),
        pytest.param(
            changed(trainer__weight_decay=math.inf),
            "TrialConfig.trainer.weight_decay must be finite, got inf",
            id="infinite decay",
        ),
        pytest.param(
            changed(trainer__weight_decay=-0.1),
            "TrialConfig.trainer.weight_decay must be at least 0, got -0.1",
            id="negative decay",
        ),
        pytest.param(
            changed(trainer__warmup_percent=101),
            "TrialConfig.trainer.warmup_percent must be from 0 to 100, got 101",
            id="more than all is warm-up",
        ),
        pytest.param(changed(trainer__epochs=0), "TrialConfig.trainer.epochs must be at least 1, got 0", id="no epoch"),
        pytest.param(
            changed(trainer__processes=0), "TrialConfig.trainer.processes must be at least 1, got 0", id="no rank"
        ),
        pytest.param(
            changed(trainer__max_length_tokens=0),
            "TrialConfig.trainer.max_length_tokens must be at least 1, got 0",
            id="samples of no tokens",
        ),
    ],
)
def test_a_wrong_configuration_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(ContractError) as refusal:
        from_json(TrialConfig, text)
    assert str(refusal.value) == sentence


def test_everything_wrong_is_said_at_once():
    with pytest.raises(ContractError) as refusal:
        from_json(TrialConfig, changed(study=3, arm={"a": math.nan, "b": None}, trainer__epochs=..., extra=1))
    assert str(refusal.value).split("; ") == [
        "TrialConfig.extra is not a field",
        "TrialConfig.study must be a string, got 3",
        "TrialConfig.arm['a'] must be finite, got nan",
        "TrialConfig.arm['b'] must be a number or a string, got None",
        "TrialConfig.trainer.epochs must be given",
    ]


def test_unknown_fields_are_passed_over_where_that_is_asked_for_and_nothing_else_is_wrong():
    ignored: list[str] = []
    text = changed(extra=1, trainer__newer={"a": []}, base_model__mirror="x")
    read = from_json(TrialConfig, text, ignored=ignored)
    assert read == from_json(TrialConfig, changed())
    assert ignored == ["TrialConfig.extra", "TrialConfig.base_model.mirror", "TrialConfig.trainer.newer"]
    with pytest.raises(ContractError) as refusal:
        from_json(TrialConfig, changed(extra=1, study=3), ignored=ignored)
    assert str(refusal.value) == "TrialConfig.extra is not a field; TrialConfig.study must be a string, got 3"
    assert len(ignored) == 3
    # In what may be null too.
    trial = a_trial()
    winner = Candidate(trial="t003", adapter="/adapter")
    evaluating = FinalEvaluationConfig(
        study="toy",
        winner=winner,
        baseline=winner,
        base_model=trial.base_model,
        dataset="/dataset",
        output="/final evaluation",
        trainer=trial.trainer,
    )
    raw = json.loads(to_json(evaluating))
    raw["baseline"]["newer"] = 1
    assert from_json(FinalEvaluationConfig, json.dumps(raw), ignored=ignored) == evaluating
    assert ignored[3:] == ["FinalEvaluationConfig.baseline.newer"]


def test_of_another_version_only_that_is_said():
    with pytest.raises(ContractError) as refusal:
        from_json(TrialConfig, changed(contract_version=1, extra=1, study=3))
    assert str(refusal.value).startswith("TrialConfig.contract_version must be 2, got 1: the operator and the")


@pytest.mark.parametrize("text", ["", "{", "{'study': 1}", b"\xff\xfe\x00", '{"study": "toy"} trailing'])
def test_what_is_no_json_is_refused_by_name(text):
    with pytest.raises(ContractError, match=r"^TrialConfig must be JSON: "):
        from_json(TrialConfig, text)


@pytest.mark.parametrize("cls", VERSIONED, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("version", [0, 1, 3])
def test_another_version_of_the_contract_is_refused(cls, version):
    @settings(max_examples=1, database=None)
    @given(instances_of(cls))
    def holds(value: Any) -> None:
        with pytest.raises(ContractError) as refusal:
            from_json(cls, to_json(dataclasses.replace(value, contract_version=version)))
        assert str(refusal.value) == (
            f"{cls.__name__}.contract_version must be 2, got {version}: the operator and the trainer's image must be "
            "of one release"
        )

    holds()


def test_every_document_that_crosses_the_boundary_carries_its_version():
    assert {PrepareConfig, TrialConfig, FinalEvaluationConfig, RungMeasurement} <= set(VERSIONED)
    assert contract.VERSION == 2


# --- Numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_neither_written_nor_read(number):
    metric = Metric(value=number, standard_error=None, n=3)
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(metric)
    with pytest.raises(ContractError) as refusal:
        from_json(Metric, json.dumps({"value": number, "standard_error": None, "n": 3}))
    assert str(refusal.value) == f"Metric.value must be finite, got {number!r}"


@pytest.mark.parametrize("count", [-1, 2**53 + 1, 10**400])
def test_no_count_is_read_that_a_status_could_not_hold(count):
    with pytest.raises(ContractError) as refusal:
        from_json(Metric, json.dumps({"value": 1.0, "standard_error": None, "n": count}))
    assert str(refusal.value) == f"Metric.n must be from 0 to 9007199254740992, got {count}"


def test_a_whole_number_too_large_for_a_double_is_refused():
    with pytest.raises(
        ContractError, match=r"^Metric\.value must be a number that a double holds exactly, got one of 401"
    ):
        from_json(Metric, json.dumps({"value": 10**400, "standard_error": None, "n": 3}))


def test_a_literal_too_large_for_a_number_is_not_finite():
    with pytest.raises(ContractError, match=r"^Metric\.standard_error must be finite, got inf$"):
        from_json(Metric, '{"value": 1, "standard_error": 1e999, "n": 3}')


def test_a_progress_without_a_loss_yet_is_one():
    text = '{"step":0,"stop_step":9,"total_steps":9,"loss":null,"phase":"load","eta_seconds":null,"updated_at":"now"}'
    assert from_json(Progress, text).loss is None


@pytest.mark.parametrize(
    ("samples", "batch_size", "epochs", "steps"), [(100, 8, 3, 36), (96, 8, 3, 36), (7, 8, 3, 0), (8, 8, 1, 1)]
)
def test_total_steps_drop_what_remains_of_an_epoch(samples, batch_size, epochs, steps):
    assert contract.count_total_steps(samples, batch_size, epochs) == steps


def test_the_exit_codes_are_those_of_the_contract():
    codes = {code.name: int(code) for code in contract.ExitCode}
    assert codes == {
        "STOP_STEP_REACHED": 0,
        "DIVERGED": 10,
        "ARM_CANNOT_RUN": 11,
        "STUDY_CANNOT_RUN": 12,
        "ASKED_TO_STOP": 143,
    }
    assert [str(precision) for precision in Precision] == ["BFloat16", "Float32"]


@pytest.mark.parametrize(
    ("name", "value", "error", "sentence"),
    [
        ("accuracy", 5.0, None, "metrics['accuracy'].value must be from 0 to 1, got 5.0"),
        ("accuracy/price", -0.1, None, "metrics['accuracy/price'].value must be from 0 to 1, got -0.1"),
        (
            "validation_loss",
            1e300,
            None,
            "metrics['validation_loss'].value must be 0 or from 1e-99 to 1e+99, got 1e+300",
        ),
        (
            "validation_loss",
            1e-300,
            None,
            "metrics['validation_loss'].value must be 0 or from 1e-99 to 1e+99, got 1e-300",
        ),
        ("accuracy", 0.5, -0.1, "metrics['accuracy'].standard_error must be at least 0, got -0.1"),
        ("accuracy", 0.5, 1e200, "metrics['accuracy'].standard_error must be 0 or from 1e-99 to 1e+99, got 1e+200"),
    ],
    ids=["above one", "below zero", "huge", "tiny", "a negative error", "a huge error"],
)
def test_a_measurement_that_nothing_can_have_measured_is_refused(
    name: str, value: float, error: float | None, sentence: str
) -> None:
    measurement = RungMeasurement(
        study="s",
        trial="t000",
        rung=0,
        step=1,
        total_steps=5,
        checkpoint="checkpoints/1-a",
        metrics={name: Metric(value=value, standard_error=error, n=3)},
        samples_seen=8,
        tokens_per_second=1.0,
        peak_memory_bytes=1,
        seconds={},
    )
    with pytest.raises(ContractError) as refusal:
        from_json(RungMeasurement, to_json(measurement))
    assert str(refusal.value) == f"RungMeasurement.{sentence}"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"study":' * 100_000], ids=["lists", "objects"])
def test_what_is_nested_too_deeply_is_refused_like_anything_else(text: str) -> None:
    with pytest.raises(ContractError, match="RungMeasurement must be JSON that is not nested so deeply"):
        from_json(RungMeasurement, text)
