"""The samples' own model as a teacher, behind `transformers serve`, which knows no schemas, and behind llama.cpp."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from builders.gguf_model import write_gguf
from trial_trainer.artifacts import open_store
from trial_trainer.contract import (
    TEACHER_API_KEY,
    AnswerFormat,
    BaseModel,
    LabelSource,
    PrepareConfig,
    Split,
    SplitBy,
    TeacherSettings,
)
from trial_trainer.dataset.prepare import prepare
from trial_trainer.dataset.store import SPLITS, TEACHER, read_split
from trial_trainer.errors import TeacherUnavailableError

MODEL = Path(__file__).resolve().parents[3] / ".cache/smollm2-135m-instruct"
PATIENCE_SECONDS = 240.0
NAMES = (
    "Anna Bruno Clara David Elena Felix Greta Hugo Irene Jonas Karin Lukas Maria Nils Olga Paul Rosa Simon Tina Uwe "
    "Vera Walter Xenia Yusuf Zora Bella Conrad Doris"
)
A_TEXT = "Hello, my name is {} and I would like a table."

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not MODEL.exists(), reason="`make model` fetches it")]


class Served:
    """A server of the model as a process, at a port of its own."""

    def __init__(self, log: Path, build_command: Callable[[int], Sequence[str]]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                build_command(self.port), stdout=output, stderr=output, env=os.environ | {"HF_HUB_OFFLINE": "1"}
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.is_up():
            assert self.process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def is_up(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    def build_command(port: int) -> list[str]:
        transformers = str(Path(sys.executable).with_name("transformers"))
        return [transformers, "serve", str(MODEL), "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]

    served = Served(tmp_path_factory.mktemp("served") / "log", build_command)
    yield served
    served.stop()


LLAMA_SERVER = """
import signal, sys
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 4096, 2, 1
server = xllamacpp.Server(params)
signal.sigwait({signal.SIGTERM})
"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("llama")
    write_gguf(MODEL, place / "model.gguf")
    served = Served(
        place / "log", lambda port: [sys.executable, "-c", LLAMA_SERVER, str(place / "model.gguf"), str(port)]
    )
    yield served
    served.stop()


def a_config(place: Path, endpoint: str) -> PrepareConfig:
    records = [{"id": name, "text": A_TEXT.format(name)} for name in NAMES.split()]
    (place / "texts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    teacher = TeacherSettings(
        endpoint=endpoint,
        model=str(MODEL),
        kept_answers=str(place / "answers"),
        instructions='For example, of the text "I am Zoe" the answer is {"first_name": "Zoe"}.',
        temperature=0.0,
        max_answer_tokens=32,
        parallel_requests=2,
        self_consistency_samples=3,
    )
    return PrepareConfig(
        study="s",
        source=str(place / "texts.jsonl"),
        attributes=("first_name",),
        labels_from=LabelSource.TEACHER,
        split=Split(by=SplitBy.PAGE, validation_percent=50, test_percent=0),
        seed=0,
        base_model=BaseModel(uri=str(MODEL)),
        max_length_tokens=256,
        dataset=str(place / "dataset"),
        teacher=teacher,
    )


def test_a_real_model_labels_and_what_it_says_is_validated_and_kept(served, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(TEACHER_API_KEY, raising=False)
    config = a_config(tmp_path, served.endpoint)
    teacher = config.teacher
    assert teacher is not None
    # A schema is asked for, and this server does not know what that is.
    for answer_format in (AnswerFormat.JSON_SCHEMA, AnswerFormat.TEXT):
        asked = replace(config, teacher=replace(teacher, answer_format=answer_format))
        summary = prepare(asked)
        assert summary.teacher is not None
        assert sum(summary.teacher.pages.values()) == len(NAMES.split())
        assert set(summary.teacher.pages) <= {"Labelled", "Malformed", "CutOff"}
        assert summary.teacher.prompt_tokens > 28 * 50
        pages = [page for name in SPLITS[:2] for page in read_split(open_store(config.dataset), name)]
        assert all(q.origin == TEACHER and q.answer_text in A_TEXT.format(p.id) for p in pages for q in p.questions)
        assert len({page.id for page in pages}) >= 10
    # Another study of these pages asks nothing: nobody would answer.
    served.stop()
    again = prepare(replace(config, study="t", dataset=str(tmp_path / "other")))
    assert again.teacher is not None and again.teacher.new_tokens == 0
    with pytest.raises(TeacherUnavailableError, match="must answer, but gave no answer"):
        prepare(replace(config, teacher=replace(teacher, model="another")), wait=lambda _: None)


def test_a_server_that_knows_schemas_leaves_nothing_malformed(llama, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(TEACHER_API_KEY, raising=False)
    config = a_config(tmp_path, llama.endpoint)
    teacher = config.teacher
    assert teacher is not None
    summaries = {
        answer_format: prepare(replace(config, teacher=replace(teacher, answer_format=answer_format)))
        for answer_format in AnswerFormat
    }
    fates = {answer_format: s.teacher.pages for answer_format, s in summaries.items() if s.teacher is not None}
    assert all(sum(pages.values()) == len(NAMES.split()) for pages in fates.values())
    # What the schema allows is a text or null, for as long as the answer may be.
    assert set(fates[AnswerFormat.JSON_SCHEMA]) <= {"Labelled", "CutOff"}
    assert fates[AnswerFormat.JSON_SCHEMA]["Labelled"] >= 20
    # JSON of any form need not have the attribute.
    assert set(fates[AnswerFormat.JSON_OBJECT]) <= {"Labelled", "Malformed", "CutOff"}
    asked = prepare(replace(config, study="t", dataset=str(tmp_path / "other")))
    assert asked.teacher is not None and asked.teacher.new_tokens == 0
