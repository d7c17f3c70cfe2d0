"""A teacher behind HTTP: right answers, every fault with its own fate, the limit of tokens, and what is kept."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from builders.odd_teacher import ANSWER_TOKENS, KEY, PROMPT_TOKENS, Fault, OddTeacher, Values
from builders.tiny_tokenizer import save_tokenizer
from trial_trainer.artifacts import open_store
from trial_trainer.contract import (
    TEACHER_API_KEY,
    AnswerFormat,
    BaseModel,
    CeilingBasis,
    LabelOrigin,
    LabelSource,
    MissingLabel,
    OutOfTokens,
    PrepareConfig,
    Split,
    TeacherSettings,
    to_json,
)
from trial_trainer.dataset.prepare import prepare
from trial_trainer.dataset.store import HAND, SPLITS, TEACHER, TEST, VALIDATION, read_split, read_summary
from trial_trainer.dataset.teacher import Fate, read_retry_after, read_values, write_prompt
from trial_trainer.errors import PrepareError, TeacherError, TeacherUnavailableError

TOKENS = PROMPT_TOKENS + ANSWER_TOKENS
NOW = datetime(2026, 1, 1, tzinfo=UTC)
T, A, G, M = LabelOrigin.TEACHER, LabelOrigin.TEACHER_AGAIN, LabelOrigin.GIVEN, LabelOrigin.MARKUP


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return str(save_tokenizer(tmp_path_factory.mktemp("model")))


def read_page(prompt: str) -> Values:
    """Return what the page of a prompt says, as somebody would who reads it."""
    name, price = (re.findall(pattern, prompt) for pattern in (r"Kettle No \d+", r"\$(\d+\.50)"))
    return {"name": name[-1] if name else None, "price": price[-1] if price else None}


@pytest.fixture
def teacher() -> Iterator[OddTeacher]:
    with OddTeacher(read_page) as server:
        yield server


@pytest.fixture
def config(model, teacher, tmp_path, monkeypatch) -> PrepareConfig:
    monkeypatch.delenv(TEACHER_API_KEY, raising=False)
    return PrepareConfig(
        study="s",
        source=str(tmp_path / "pages.jsonl"),
        attributes=("name", "price"),
        labels_from=LabelSource.TEACHER,
        split=Split(validation_percent=40, test_percent=0),
        seed=0,
        base_model=BaseModel(uri=model),
        max_length_tokens=700,
        dataset=str(tmp_path / "dataset"),
        teacher=TeacherSettings(
            endpoint=teacher.endpoint, model="large", kept_answers=str(tmp_path / "answers"), max_answer_tokens=100
        ),
    )


def with_teacher(config: PrepareConfig, **changes) -> PrepareConfig:
    assert config.teacher is not None
    return replace(config, teacher=replace(config.teacher, **changes))


def a_page(number: int, **changes) -> dict:
    record = {
        "id": f"p{number}",
        "url": f"https://shop{number}.example/kettle",
        "html": f"<html><body><h1>Kettle No {number}</h1><p>Boils water in a minute or so, made of steel.</p>"
        f"<p>Price: ${number + 10}.50</p></body></html>",
    }
    return record | changes


def write(config: PrepareConfig, pages: list[dict], uri: str | None = None) -> None:
    Path(uri or config.source).write_text("".join(json.dumps(page) + "\n" for page in pages))


def run(config: PrepareConfig, **changes):
    return prepare(replace(config, **changes), wait=lambda _: None)


def questions_of(config: PrepareConfig) -> list:
    store = open_store(config.dataset)
    summary = read_summary(store)
    pages = [page for name in SPLITS if name in summary.splits for page in read_split(store, name)]
    return [(page.id, question) for page in pages for question in page.questions]


def read_all_files(*directories: str) -> str:
    return "".join(
        Path(path, name).read_bytes().decode(errors="replace")
        for directory in directories
        for path, _, names in os.walk(directory)
        for name in names
    )


# Labels ---------------------------------------------------------------------------------------------------------------


def test_pages_without_labels_are_labelled_by_the_teacher(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    summary = run(config)
    questions = questions_of(config)
    assert {name: split.samples for name, split in summary.splits.items()} == {"train": 36, "validation": 24}
    assert {question.origin for _, question in questions} == {TEACHER}
    assert all(
        question.gold == ((f"Kettle No {page[1:]}",) if question.attribute == "name" else (f"{int(page[1:]) + 10}.50",))
        for page, question in questions
    )
    assert summary.teacher is not None
    assert summary.teacher.pages == {"Labelled": 30}
    assert (summary.teacher.prompt_tokens, summary.teacher.answer_tokens) == (30 * PROMPT_TOKENS, 30 * ANSWER_TOKENS)
    assert (summary.teacher.new_tokens, summary.teacher.kept_answers, len(teacher.requests)) == (30 * TOKENS, 0, 30)
    assert read_summary(open_store(config.dataset)) == summary


def test_splits_do_not_depend_on_what_the_teacher_answers(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    run(config)
    first = {page: name for name in ("train", "validation") for page in ids_of(config, name)}
    teacher.fail(Fault.PROSE, of=[f"No {number}" for number in range(3)])
    run(config, teacher=replace(config.teacher, model="other"))
    second = {page: name for name in ("train", "validation") for page in ids_of(config, name)}
    assert second == {page: name for page, name in first.items() if page not in ("p0", "p1", "p2")}


def ids_of(config: PrepareConfig, split: str) -> list[str]:
    return [page.id for page in read_split(open_store(config.dataset), split)]


def test_a_value_that_the_text_does_not_hold_is_no_label(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    teacher.fail(Fault.OTHER, of=["No 3", "No 4"])
    summary = run(config)
    assert {page for page, _ in questions_of(config)} == {f"p{n}" for n in range(30)} - {"p3", "p4"}
    assert summary.dropped_labels == {"name": 2}
    assert summary.unusable_labels == {"price": 2}


def test_null_is_silence_or_absence_as_the_study_says(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    teacher.fail(Fault.NULLS, of=["No 3"])
    assert run(config).skipped_pages == {"NoLabels": 1}
    assert "p3" not in {page for page, _ in questions_of(config)}
    run(config, missing_labels=MissingLabel.ABSENT)
    found = {question.attribute: question for page, question in questions_of(config) if page == "p3"}
    assert {name: (question.gold, question.answer_text) for name, question in found.items()} == {
        "name": ((), "none"),
        "price": ((), "none"),
    }


def test_given_labels_win_over_the_teacher(config) -> None:
    pages = [a_page(number) for number in range(30)]
    pages[5] = a_page(5, labels={"name": "Kettle", "price": None})
    write(config, pages)
    run(config)
    found = {question.attribute: question for page, question in questions_of(config) if page == "p5"}
    assert (found["name"].gold, found["name"].origin) == (("Kettle",), HAND)
    assert (found["price"].gold, found["price"].origin) == ((), HAND)


def test_a_test_page_with_given_labels_is_never_shown_to_the_teacher(config, teacher, tmp_path) -> None:
    write(config, [a_page(number) for number in range(30)])
    tests = str(tmp_path / "tests.jsonl")
    wrong = {"price": "for free"}
    pages = [a_page(100, labels={"name": "Kettle No 100"}), a_page(101), a_page(102, labels=wrong)]
    write(config, pages, tests)
    summary = run(config, test_source=tests)
    prompts = [request["messages"][0]["content"] for request in teacher.requests]
    assert not any("No 100" in prompt or "No 102" in prompt for prompt in prompts)
    assert any("No 101" in prompt for prompt in prompts)
    origins = [
        (page.id, q.attribute, q.origin)
        for page in read_split(open_store(config.dataset), TEST)
        for q in page.questions
    ]
    assert origins == [("p100", "name", HAND), ("p101", "name", TEACHER), ("p101", "price", TEACHER)]
    assert any("2 of 3 labels of the test split are the teacher's" in warning for warning in summary.warnings)


def test_pages_drawn_for_the_test_set_keep_to_their_given_labels(config, teacher) -> None:
    write(config, [a_page(number, labels={"name": f"Kettle No {number}"}) for number in range(40)])
    run(config, split=Split(validation_percent=25, test_percent=25))
    drawn = read_split(open_store(config.dataset), TEST)
    asked = {match[-1] for r in teacher.requests if (match := re.findall(r"No \d+", r["messages"][0]["content"]))}
    assert {question.origin for page in drawn for question in page.questions} == {HAND}
    assert asked.isdisjoint({f"No {page.id[1:]}" for page in drawn})
    assert len(asked) == 30


def test_texts_are_asked_by_their_attributes_alone(config, teacher) -> None:
    write(config, [{"id": f"t{n}", "site": f"s{n}", "text": f"Kettle No {n}, please, for ${n}.50"} for n in range(30)])
    run(config, attributes=("name", "price"))
    assert "Kettle No 7" in {q.gold[0] for page, q in questions_of(config) if page == "t7"}


# Every fault and its fate ---------------------------------------------------------------------------------------------

ANSWERED = [
    pytest.param(Fault.FENCED, Fate.LABELLED, id="in a fence"),
    pytest.param(Fault.PROSE, Fate.MALFORMED, id="prose"),
    pytest.param(Fault.WITHOUT_PRICE, Fate.MALFORMED, id="an attribute missing"),
    pytest.param(Fault.LIST, Fate.MALFORMED, id="lists"),
    pytest.param(Fault.ENDLESS, Fate.CUT_OFF, id="cut off"),
    pytest.param(Fault.REFUSAL, Fate.REFUSED, id="a refusal"),
    pytest.param(Fault.FILTER, Fate.REFUSED, id="a filter"),
]
FAILED = [
    pytest.param(Fault.RATE_LIMIT, Fate.RATE_LIMITED, id="429"),
    pytest.param(Fault.OVERLOADED, Fate.SERVER_ERROR, id="503"),
    pytest.param(Fault.CRASH, Fate.SERVER_ERROR, id="500"),
    pytest.param(Fault.CUT, Fate.DISCONNECTED, id="cut"),
    pytest.param(Fault.CLOSED, Fate.DISCONNECTED, id="closed"),
    pytest.param(Fault.NO_COMPLETION, Fate.SERVER_ERROR, id="no completion"),
    pytest.param(Fault.HTML, Fate.SERVER_ERROR, id="a page"),
]


@pytest.mark.parametrize(("fault", "fate"), ANSWERED)
def test_an_answer_is_validated_and_asked_for_once(config, teacher, fault, fate) -> None:
    write(config, [a_page(number) for number in range(30)])
    teacher.fail(fault, of=["No 3"])
    summary = run(config)
    assert summary.teacher is not None
    assert Counter(summary.teacher.pages) == Counter({"Labelled": 29}) + Counter([str(fate)])
    assert len(teacher.requests) == 30
    again = run(config)
    assert (again.teacher.pages, again.teacher.kept_answers, again.teacher.new_tokens) == (summary.teacher.pages, 30, 0)
    assert len(teacher.requests) == 30
    assert again.fingerprint == summary.fingerprint


@pytest.mark.parametrize(("fault", "fate"), FAILED)
def test_a_request_that_fails_is_sent_again_and_counted(config, teacher, fault, fate) -> None:
    write(config, [a_page(number) for number in range(30)])
    teacher.fail(fault, fault, of=["No 3"])
    summary = run(config)
    assert (summary.teacher.pages, summary.teacher.retries) == ({"Labelled": 30}, {fate: 2})
    assert len(teacher.requests) == 32


def test_a_slow_answer_times_out_and_is_asked_for_again(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    teacher.fail(Fault.SLOW, of=["No 3"])
    summary = prepare(with_teacher(config, timeout_seconds=0.3), wait=lambda _: None)  # type: ignore[arg-type]
    assert (summary.teacher.pages, summary.teacher.retries) == ({"Labelled": 30}, {"TimedOut": 1})


def test_pages_that_never_get_an_answer_are_left_out_and_counted(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    teacher.fail(*[Fault.OVERLOADED] * 6, of=["No 3"])
    teacher.fail(*[Fault.CLOSED] * 6, of=["No 4"])
    teacher.fail(Fault.FILTERED_PROMPT, of=["No 5"])
    summary = run(config)
    assert summary.teacher.pages == {"Disconnected": 1, "Labelled": 27, "Refused": 1, "ServerError": 1}
    assert summary.teacher.retries == {"Disconnected": 5, "ServerError": 5}
    assert (
        "the teacher 'large' left 3 of 30 pages unlabelled: Disconnected 1, Refused 1, ServerError 1"
        in summary.warnings
    )
    assert summary.skipped_pages == {"NoLabels": 3}
    # What was left out is asked for again, and nothing else.
    teacher.requests.clear()
    assert run(config).teacher.pages == {"Labelled": 30}
    assert len(teacher.requests) == 3


def test_a_server_that_wants_to_be_left_alone_for_an_hour_is(config, teacher) -> None:
    waits: list[float] = []
    write(config, [a_page(number) for number in range(30)])
    teacher.fail(Fault.RATE_LIMIT_FOR_AN_HOUR, of=["No 3"])
    summary = prepare(config, wait=waits.append)
    assert (summary.teacher.pages, waits) == ({"Labelled": 29, "RateLimited": 1}, [])


def test_a_teacher_that_is_away_ends_the_attempt_soon_and_loses_nothing(config, teacher) -> None:
    write(config, [a_page(number) for number in range(100)])
    config = with_teacher(config, parallel_requests=2)
    teacher.fail(Fault.PROSE, of=["No 3"])
    run(replace(config, max_pages=20))
    asked, teacher.always = len(teacher.requests), Fault.OVERLOADED
    with pytest.raises(
        TeacherUnavailableError, match=r"no answer for the last 10 pages \(ServerError 10; status 503"
    ) as caught:
        run(config)
    assert "20 answers are kept" in str(caught.value)
    assert len(teacher.requests) - asked <= 12 * 6
    assert (
        not Path(config.dataset, "summary.json").exists()
        or read_summary(open_store(config.dataset)).teacher.kept_answers == 0
    )
    teacher.always = None
    assert run(config).teacher.kept_answers == 20


ENDS = [
    pytest.param(Fault.UNAUTHORIZED, TeacherUnavailableError, "no key is given: status 401", id="401"),
    pytest.param(Fault.NO_QUOTA, TeacherUnavailableError, "must have quota left", id="no quota"),
    pytest.param(Fault.MISSING, TeacherError, "the model large does not exist", id="404"),
]


@pytest.mark.parametrize(("fault", "error", "words"), ENDS)
def test_what_no_further_request_can_mend_ends_at_once(config, teacher, fault, error, words) -> None:
    write(config, [a_page(number) for number in range(100)])
    teacher.always = fault
    with pytest.raises(error, match=words):
        run(with_teacher(config, parallel_requests=2))
    assert len(teacher.requests) <= 4


def test_a_server_that_knows_no_schemas_is_asked_in_words(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    teacher.rejects_formats = True
    with pytest.raises(TeacherError, match=r"takes no request: status 400.*`answerFormat` Text is for servers"):
        run(config)
    summary = run(with_teacher(config, answer_format=AnswerFormat.TEXT))
    assert summary.teacher.pages == {"Labelled": 30}
    assert "response_format" not in teacher.requests[-1]


def test_a_teacher_that_labels_nothing_makes_no_dataset(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    teacher.always = Fault.PROSE
    with pytest.raises(PrepareError, match="must label at least 1 page, but labelled none: Malformed 30"):
        run(config)


# Requests -------------------------------------------------------------------------------------------------------------


def test_a_request_holds_the_schema_and_what_the_study_says(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    run(with_teacher(config, temperature=0.5, instructions="Prices are in dollars."))
    request = teacher.requests[0]
    value = {"type": ["string", "null"]}
    assert request["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "values",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"name": value, "price": value},
                "required": ["name", "price"],
                "additionalProperties": False,
            },
        },
    }
    assert (request["model"], request["temperature"], request["max_completion_tokens"]) == ("large", 0.5, 100)
    prompt = request["messages"][0]["content"]
    assert "Prices are in dollars." in prompt
    assert "price: What is the price now, as a number?" in prompt
    teacher.requests.clear()
    run(with_teacher(config, answer_format=AnswerFormat.JSON_OBJECT))
    assert teacher.requests[0]["response_format"] == {"type": "json_object"}
    assert "temperature" not in teacher.requests[0]


def test_no_more_requests_are_under_way_than_the_study_allows(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    teacher.seconds = 0.05
    run(with_teacher(config, parallel_requests=3))
    assert teacher.most_busy == 3


def test_equal_texts_are_asked_once(config, teacher) -> None:
    texts = [f"Kettle No {n % 30}, please, for ${n % 30}.50" for n in range(35)]
    write(config, [{"id": f"t{n}", "site": f"s{n}", "text": text} for n, text in enumerate(texts)])
    run(config)
    assert len(teacher.requests) == 30


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_asks_for_no_answer_twice(config, teacher, tmp_path) -> None:
    write(config, [a_page(number) for number in range(60)])
    config = with_teacher(config, parallel_requests=2)
    teacher.seconds = 0.05
    environment = os.environ | {"PREPARE_CONFIG": to_json(config)}
    for lives in range(1, 4):
        process = subprocess.Popen([sys.executable, "-m", "trial_trainer", "prepare"], env=environment)
        deadline = time.monotonic() + 240
        while len(teacher.requests) < lives * 15:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
    process = subprocess.Popen([sys.executable, "-m", "trial_trainer", "prepare"], env=environment)
    assert process.wait(240) == 0
    summary = read_summary(open_store(config.dataset))
    assert summary.teacher is not None and summary.teacher.pages == {"Labelled": 60}
    # Of each life at most the requests that were under way, one of which may just have been answered.
    counts = Counter(request["messages"][0]["content"] for request in teacher.requests)
    assert len(counts) == 60
    assert len(teacher.requests) <= 60 + 3 * 2 * 2


def test_answers_are_kept_in_a_bucket_too(config, teacher, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    write(config, [a_page(number) for number in range(30)])
    with mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="studies")
        for kept in (0, 30):
            summary = run(with_teacher(config, kept_answers="s3://studies/shop/teacher-answers"))
            assert (summary.teacher.pages, summary.teacher.kept_answers) == ({"Labelled": 30}, kept)
    assert len(teacher.requests) == 30


def test_an_answer_that_was_kept_by_halves_is_asked_for_again(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    run(config)
    next(Path(config.teacher.kept_answers).rglob("*.json")).write_text('{"content": "')
    assert run(config).teacher.pages == {"Labelled": 30}
    assert len(teacher.requests) == 31


def test_what_another_request_could_answer_otherwise_is_asked_anew(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    run(config)
    for changes in (
        {"model": "larger"},
        {"temperature": 0.0},
        {"instructions": "Be brief."},
        {"max_answer_tokens": 99},
    ):
        teacher.requests.clear()
        run(with_teacher(config, **changes))
        assert len(teacher.requests) == 30
    teacher.requests.clear()
    run(with_teacher(config, parallel_requests=1, timeout_seconds=60, max_tokens=10**9))
    assert teacher.requests == []


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_the_limit_of_tokens_is_kept_across_attempts(config, teacher) -> None:
    write(config, [a_page(number) for number in range(60)])
    limited = with_teacher(config, max_tokens=40 * TOKENS)
    summary = run(limited)
    assert summary.teacher.prompt_tokens + summary.teacher.answer_tokens <= 40 * TOKENS
    labelled = summary.teacher.pages["Labelled"]
    assert 35 <= labelled <= 40
    assert summary.teacher.new_tokens == labelled * TOKENS
    assert summary.teacher.pages == {"Labelled": labelled, "OutOfTokens": 60 - labelled}
    assert any(f"left {60 - labelled} of 60 pages unlabelled: OutOfTokens" in warning for warning in summary.warnings)
    # A second attempt has spent what the first one did.
    again = run(limited)
    assert (again.teacher.pages, again.teacher.new_tokens) == (summary.teacher.pages, 0)
    assert again.fingerprint == summary.fingerprint


def test_what_is_labelled_when_tokens_run_out_may_be_refused(config, teacher) -> None:
    write(config, [a_page(number) for number in range(60)])
    limited = with_teacher(config, max_tokens=40 * TOKENS, when_tokens_run_out=OutOfTokens.REFUSE)
    with pytest.raises(
        PrepareError, match=r"teacher.max_tokens must be more than 8,800 to label every page: Labelled \d+"
    ):
        run(limited)
    asked = len(teacher.requests)
    run(with_teacher(config, max_tokens=100 * TOKENS))
    assert len(teacher.requests) == 60
    assert asked == 38


def test_tokens_are_estimated_where_the_server_tells_none(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    teacher.without_usage = True
    summary = run(config)
    assert summary.teacher.prompt_tokens > 30 * 50
    assert summary.teacher.answer_tokens > 30 * 5


# Audit ----------------------------------------------------------------------------------------------------------------


def agreements_of(summary) -> dict:
    assert summary.audit is not None
    return {(a.one, a.other, a.attribute): (a.metric.value, a.metric.n) for a in summary.audit.agreements}


def test_the_teacher_is_compared_with_given_labels_and_markup(config, teacher) -> None:
    pages = [a_page(number, markup={"price": f"{number + 10}.50"}) for number in range(40)]
    for number in range(10):
        pages[number]["labels"] = {"name": f"Kettle No {number}", "price": f"{number + 10}.50"}
    write(config, pages)
    teacher.fail(Fault.OTHER, of=["No 0"])
    summary = run(config)
    teacher_given = {a: found for (one, other, a), found in agreements_of(summary).items() if (one, other) == (T, G)}
    assert teacher_given == {"name": (0.9, 10), "price": (0.9, 10), None: (0.9, 20)}
    assert agreements_of(summary)[T, M, "price"] == (39 / 40, 40)
    assert agreements_of(summary)[M, G, "price"] == (1.0, 10)
    # What stands nowhere is no label, so that validation is not wrong by it.
    ceilings = {(c.basis, c.attribute): c.metric.value for c in summary.audit.ceilings}
    assert ceilings[CeilingBasis.GIVEN_LABELS, None] == 1.0


def test_wrong_labels_that_the_text_holds_lower_the_ceiling(config, teacher) -> None:
    pages = [a_page(number) for number in range(40)]
    for number in range(10):
        # The page shows another price than the one that is asked for.
        pages[number]["labels"] = {"price": f"{number + 10}.50" if number < 8 else "999.00"}
    write(config, pages)
    summary = run(config)
    given = {c.attribute: c.metric for c in summary.audit.ceilings if c.basis is CeilingBasis.GIVEN_LABELS}
    noisy = noisy_share(config, "price")
    assert given["price"].value == pytest.approx(1 - 0.2 * noisy)
    assert 0 < noisy < 1


def noisy_share(config: PrepareConfig, attribute: str) -> float:
    pages = read_split(open_store(config.dataset), VALIDATION)
    origins = [q.origin for page in pages for q in page.questions if q.attribute == attribute]
    return origins.count(TEACHER) / len(origins)


def test_a_second_pass_over_a_sample_tells_how_often_the_teacher_contradicts_itself(config, teacher) -> None:
    write(config, [a_page(number) for number in range(60)])
    asked: Counter[str] = Counter()

    def waver(prompt: str) -> Values:
        """Forget the second time what every third kettle costs."""
        values = read_page(prompt)
        asked[prompt] += 1
        is_third = int(str(values["name"]).split()[-1]) % 3 == 0
        return {**values, **({"price": None} if asked[prompt] == 2 and is_third else {})}

    teacher.answer = waver
    summary = run(with_teacher(config, self_consistency_samples=20))
    assert len(teacher.requests) == 80
    assert (summary.teacher.pages, summary.teacher.pages_again) == ({"Labelled": 60}, {"Labelled": 20})
    found = agreements_of(summary)
    assert found[T, A, "name"] == (1.0, 20)
    twice = [str(read_page(prompt)["name"]) for prompt, count in asked.items() if count == 2]
    share = sum(int(name.split()[-1]) % 3 > 0 for name in twice) / 20
    assert 0.3 < share < 1
    assert found[T, A, "price"] == (pytest.approx(share), 20)
    ceilings = {c.attribute: c.metric for c in summary.audit.ceilings if c.basis is CeilingBasis.SELF_CONSISTENCY}
    assert ceilings["price"].value == pytest.approx(share**0.5)
    # The second pass is kept, too, and is another than the first.
    teacher.requests.clear()
    again = run(with_teacher(config, self_consistency_samples=20))
    assert teacher.requests == []
    assert again.audit == summary.audit


def test_given_labels_are_compared_with_markup_whosever_labels_are_used(config) -> None:
    pages = [a_page(number, labels={"price": "1.00" if number < 3 else f"{number + 10}.50"}) for number in range(30)]
    write(config, [page | {"markup": {"price": f"{n + 10}.50"}} for n, page in enumerate(pages)])
    for source in (LabelSource.MARKUP, LabelSource.GIVEN):
        summary = run(config, labels_from=source, teacher=None, attributes=("price",))
        assert agreements_of(summary)[M, G, "price"] == (0.9, 30)


# The key --------------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_stands_nowhere_else(config, teacher, monkeypatch, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(TEACHER_API_KEY, KEY)
    write(config, [a_page(number) for number in range(30)])
    teacher.answer = lambda prompt: {**read_page(prompt), "note": KEY}
    summary = run(config)
    assert set(teacher.authorizations) == {f"Bearer {KEY}"}
    written = read_all_files(config.dataset, config.teacher.kept_answers)
    assert "Kettle" in written
    assert KEY not in written + to_json(summary) + to_json(config) + caplog.text


def test_an_error_that_repeats_the_key_does_not_bring_it_out(config, teacher, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv(TEACHER_API_KEY, KEY)
    write(config, [a_page(number) for number in range(30)])
    teacher.always = Fault.UNAUTHORIZED
    with pytest.raises(TeacherUnavailableError, match="the key is refused: status 401") as caught:
        run(config)
    assert "bad key in Bearer …" in str(caught.value)
    assert KEY not in str(caught.value) + caplog.text


def test_a_key_is_sent_without_the_end_of_line_of_its_file(config, teacher, monkeypatch) -> None:
    monkeypatch.setenv(TEACHER_API_KEY, f"{KEY}\n")
    write(config, [a_page(number) for number in range(30)])
    run(config)
    assert set(teacher.authorizations) == {f"Bearer {KEY}"}


@pytest.mark.parametrize("key", [f"{KEY}\nsecond", f"{KEY} {KEY}", f"{KEY}é", f"{KEY}\x7f"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(config, monkeypatch, caplog, key) -> None:
    monkeypatch.setenv(TEACHER_API_KEY, key)
    write(config, [a_page(number) for number in range(30)])
    with pytest.raises(TeacherUnavailableError, match="must be one line of printable ASCII") as caught:
        run(config)
    assert KEY not in str(caught.value) + caplog.text


def test_a_key_that_an_error_quotes_does_not_come_out(config, teacher, monkeypatch, caplog) -> None:
    odd = KEY + "\\'\""
    monkeypatch.setenv(TEACHER_API_KEY, odd)
    write(config, [a_page(number) for number in range(30)])
    teacher.always = Fault.UNAUTHORIZED
    with pytest.raises(TeacherUnavailableError) as caught:
        run(config)
    assert KEY not in str(caught.value) + caplog.text


def test_without_a_key_nothing_is_said_of_one(config, teacher) -> None:
    write(config, [a_page(number) for number in range(30)])
    run(config)
    assert set(teacher.authorizations) == {None}


# Small things ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        pytest.param(None, None, id="not given"),
        pytest.param("7", 7.0, id="seconds"),
        pytest.param("0.5", 0.5, id="half a second"),
        pytest.param("Thu, 01 Jan 2026 00:01:00 GMT", 60.0, id="a date"),
        pytest.param("Thu, 01 Jan 2025 00:01:00 GMT", 0.0, id="a date that is over"),
        pytest.param("soon", None, id="no time"),
    ],
)
def test_retry_after_is_read_in_both_forms(header, seconds) -> None:
    assert read_retry_after(header, NOW) == seconds


@pytest.mark.parametrize(
    ("content", "values"),
    [
        pytest.param('{"a": " x ", "b": null}', {"a": "x", "b": None}, id="a text and null"),
        pytest.param('{"a": 12.50, "b": 7}', {"a": "12.50", "b": "7"}, id="numbers as they are written"),
        pytest.param('{"a": "none", "b": ""}', {"a": None, "b": None}, id="words for null"),
        pytest.param('{"a": "x", "b": "y", "c": 1}', {"a": "x", "b": "y"}, id="one more"),
        pytest.param('so {"x": 1} or {"a": "x", "b": "y"}', {"a": "x", "b": "y"}, id="the second object"),
        pytest.param('{"a": "x"}', None, id="one missing"),
        pytest.param('{"a": true, "b": "y"}', None, id="a truth"),
        pytest.param('{"a": {"a": "x", "b": "y"}', {"a": "x", "b": "y"}, id="one inside of a broken one"),
        pytest.param('["x", "y"]', None, id="a list"),
        pytest.param("", None, id="nothing"),
        pytest.param("{" * 100_000, None, id="nested without end"),
    ],
)
def test_values_are_read_from_whatever_a_model_writes(content, values) -> None:
    assert read_values(content, ("a", "b")) == values


def test_a_prompt_names_the_form_and_ends_with_the_text() -> None:
    prompt = write_prompt("Terraced house", ("rooms", "price"), "Rooms without kitchen.")
    assert prompt.endswith("Text:\nTerraced house")
    assert 'The object has this form: {"rooms": text or null, "price": text or null}' in prompt


def test_settings_that_do_not_go_together_are_refused(config) -> None:
    with pytest.raises(PrepareError, match="teacher must be given where labels_from is Teacher"):
        run(config, teacher=None)
    with pytest.raises(PrepareError, match="teacher must not be given where labels_from is Given"):
        run(config, labels_from=LabelSource.GIVEN)
    with pytest.raises(PrepareError, match="attributes must hold at least 1 where labels_from is Teacher"):
        run(config, attributes=())
