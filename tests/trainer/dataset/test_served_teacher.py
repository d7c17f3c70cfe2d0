"""The samples' own model as a teacher, behind `transformers serve`, which ignores `response_format`."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

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

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not MODEL.exists(), reason="`make model` fetches it")]


class Served:
    """`transformers serve` as a process."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(Path(sys.executable).with_name("transformers")), "serve", str(MODEL), "--port", str(self.port)]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--device", "cpu"],
                stdout=output,
                stderr=output,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
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
    served = Served(tmp_path_factory.mktemp("served") / "log")
    yield served
    served.stop()


def test_a_real_model_labels_and_what_it_says_is_validated_and_kept(served, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(TEACHER_API_KEY, raising=False)
    records = [{"id": name, "text": f"Hello, my name is {name} and I would like a table."} for name in NAMES.split()]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    teacher = TeacherSettings(
        endpoint=served.endpoint,
        model=str(MODEL),
        kept_answers=str(tmp_path / "answers"),
        instructions='For example, of the text "I am Zoe" the answer is {"first_name": "Zoe"}.',
        temperature=0.0,
        max_answer_tokens=32,
        parallel_requests=2,
        self_consistency_samples=3,
    )
    config = PrepareConfig(
        study="s",
        source=str(tmp_path / "texts.jsonl"),
        attributes=("first_name",),
        labels_from=LabelSource.TEACHER,
        split=Split(by=SplitBy.PAGE, validation_percent=50, test_percent=0),
        seed=0,
        base_model=BaseModel(uri=str(MODEL)),
        max_length_tokens=256,
        dataset=str(tmp_path / "dataset"),
        teacher=teacher,
    )
    # A schema is asked for, and this server does not know what that is.
    for answer_format in (AnswerFormat.JSON_SCHEMA, AnswerFormat.TEXT):
        asked = replace(config, teacher=replace(teacher, answer_format=answer_format))
        summary = prepare(asked)
        assert summary.teacher is not None
        assert sum(summary.teacher.pages.values()) == len(records)
        assert set(summary.teacher.pages) <= {"Labelled", "Malformed", "CutOff"}
        assert summary.teacher.prompt_tokens > 28 * 50
        pages = [page for name in SPLITS[:2] for page in read_split(open_store(config.dataset), name)]
        texts = {str(record["id"]): str(record["text"]) for record in records}
        assert all(q.origin == TEACHER and q.answer_text in texts[p.id] for p in pages for q in p.questions)
        assert len({page.id for page in pages}) >= 10
    # Another study of these pages asks nothing: nobody would answer.
    served.stop()
    again = prepare(replace(config, study="t", dataset=str(tmp_path / "other")))
    assert again.teacher is not None and again.teacher.new_tokens == 0
    with pytest.raises(TeacherUnavailableError, match="must answer, but gave no answer"):
        prepare(replace(config, teacher=replace(teacher, model="another")), wait=lambda _: None)
