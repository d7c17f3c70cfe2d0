"""The command line at its process boundary: whole studies with a stand-in trainer, kills, interrupts, bad input."""

import contextlib
import http.client
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import study_command
from builders.odd_teacher import KEY, Fault, OddTeacher
from builders.tiny_tokenizer import save_tokenizer
from study_operator.__main__ import main
from trial_trainer.contract import TEACHER_API_KEY

COMMAND = (sys.executable, study_command.__file__)
PATIENCE_SECONDS = 120.0
"""How long a test that hangs takes to fail."""
RELATIVE = "(a relative path is relative to the manifest's directory)"
HUB = "a model on the hub is hf://owner/name"


def a_manifest() -> dict[str, Any]:
    """Return a study of six trials, two at a time, whose paths are relative to it."""
    return {
        "apiVersion": "finetune.study/v1alpha1",
        "kind": "FineTuneStudy",
        "metadata": {"name": "toy"},
        "spec": {
            "objective": {"metric": "accuracy", "direction": "Maximize"},
            "parameters": [
                {"name": "learning_rate", "searchSpace": {"logUniform": {"min": "1e-4", "max": "1e-2"}}},
                {"name": "batch_size", "searchSpace": {"categorical": {"values": ["8", "16"], "ordered": True}}},
            ],
            "baseline": {"learning_rate": "1e-3", "batch_size": "8"},
            "numTrials": 6,
            "parallelTrials": 2,
            "promotion": {"numPromoted": 2, "numAudited": 1},
            "data": {
                "source": "pages.jsonl",
                "attributes": ["name", "price"],
                "split": {"validationPercent": 35, "testPercent": 20},
            },
            "trainer": {"baseModel": {"uri": "model"}, "epochs": 3, "maxLengthTokens": 512},
            "storage": {"uri": "runs"},
        },
    }


def changed(**changes: Any) -> dict[str, Any]:
    """Return the manifest with fields of its spec changed."""
    manifest = a_manifest()
    manifest["spec"] |= changes
    return manifest


class Bench:
    """A directory with a manifest, and the command started on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = directory / "study.yaml"
        self.starts = directory / "starts"
        self.behaviour: dict[str, Any] = {"seconds": 0.05, "starts": str(self.starts)}
        (directory / "pages.jsonl").touch()
        (directory / "model").mkdir()
        self.write(a_manifest())

    def write(self, manifest: dict[str, Any]) -> None:
        self.manifest.write_text(json.dumps(manifest))

    def environment(self) -> dict[str, str]:
        return {**os.environ, "STAND_IN": json.dumps(self.behaviour)}

    def start(self, command: str = "run", *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, command, str(self.manifest), *flags],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, command: str = "run", *flags: str) -> tuple[int, str, str]:
        process = self.start(command, *flags)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, output, errors

    @property
    def home(self) -> Path:
        """Where the study's status is kept."""
        return self.directory / "runs" / ".finetune-study" / "default" / "toy"

    def status(self) -> dict[str, Any]:
        return json.loads((self.home / "status.json").read_text())["status"]

    def lines(self, word: str) -> list[str]:
        """Return the names of the jobs that noted a word, in order."""
        if not self.starts.exists():
            return []
        return [line.split()[0] for line in self.starts.read_text().splitlines() if line.split()[1] == word]

    def until(self, subject: str, condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:.0f} s for {subject}"
            time.sleep(0.01)

    def most_at_once(self) -> int:
        """Return the most trials that ran at the same time."""
        running = most = 0
        for line in self.starts.read_text().splitlines():
            name, word = line.split()[:2]
            if name not in ("prepare", "finalEvaluation"):
                running += 1 if word == "start" else -1
                most = max(most, running)
        return most


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    # Whatever a failed test left running.
    for path in tmp_path.glob("**/jobs/*/attempt.json"):
        for number, birth in json.loads(path.read_text()).values():
            if birth and Path(f"/proc/{number}").exists():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


EVERY_JOB = ["prepare", *(f"t{i:03d}-r0" for i in range(6))]


def test_a_study_runs_from_pages_to_an_evaluated_winner(bench):
    code, output, errors = bench.call()

    assert (code, errors) == (0, "")
    assert bench.lines("start")[0] == "prepare" and bench.lines("start")[-1] == "final-evaluation"
    starts = bench.lines("start")
    assert sorted(starts[:7]) == sorted(EVERY_JOB)
    # Two promoted, one audited, the baseline.
    assert sum(name.endswith("r1") for name in starts) == 4
    assert max(Counter(starts).values()) == 1
    assert bench.most_at_once() == 2
    message = output.splitlines()
    assert "launched job toy-prepare to prepare the dataset" in output
    assert any(line.startswith("The winner beats the rule extractor on the test set: 52.0 %") for line in message)
    assert any(line.startswith("Accelerator time: ") for line in message)
    assert "model = PeftModel.from_pretrained(model, " in output
    prefix = next((bench.directory / "runs" / "default").iterdir())
    report = json.loads((prefix / "report" / "report.json").read_text())
    assert report["stage"] == "Completed" and report["finalEvaluation"]["winner"] == report["winner"]
    assert (prefix / "report" / "index.html").read_text().startswith("<!doctype html>")
    assert json.loads((prefix / "ledger.json").read_text())["outcome"]["reason"] == "Completed"


def test_a_study_measures_its_data_curve_before_the_test_set_is_read(bench):
    bench.write(changed(dataCurve={"sampleSizes": [4, 40, 160, 4000], "seeds": 2}))

    code, output, errors = bench.call()

    assert (code, errors) == (0, "")
    starts = bench.lines("start")
    # 4 samples are no batch of 8, and there are 320 training samples.
    assert sorted(starts[-5:-1]) == [f"t{i:03d}-r1" for i in range(6, 10)]
    assert starts[-1] == "final-evaluation"
    assert bench.most_at_once() == 2
    assert "warning: spec.dataCurve.sampleSizes must be at most 320, the number of training samples: 4000 is left" in (
        output
    )
    assert (
        "Data curve: 4 of 4 runs of the data curve were measured; spec.dataCurve.sampleSizes must be at least" in output
    )
    prefix = next((bench.directory / "runs" / "default").iterdir())
    curve = json.loads((prefix / "report" / "report.json").read_text())["dataCurve"]
    assert [point["samples"] for point in curve["points"]] == [40, 160]
    means = [point["validation"]["mean"] for point in curve["points"]]
    assert means[1] - means[0] == pytest.approx(4 / 40 - 4 / 160)
    assert [point["test"] for point in curve["points"]] == [{"mean": 0.4, "values": [0.4, 0.4], "n": 140}] * 2
    assert "<h2>Data curve</h2>" in (prefix / "report" / "index.html").read_text()
    assert [run["seed"] for run in bench.status()["dataCurve"]] == [0, 1, 0, 1]


@pytest.mark.slow
def test_running_a_finished_study_again_runs_nothing_and_says_the_same(bench):
    _, first, _ = bench.call()
    before = bench.starts.read_text()

    code, second, _ = bench.call()

    assert code == 0
    assert bench.starts.read_text() == before
    assert second.splitlines()[-5:] == first.splitlines()[-5:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_command_killed_at_any_moment_loses_nothing_and_runs_nothing_twice(bench, seed):
    manifest = a_manifest()
    manifest["spec"] |= {"numTrials": 12, "promotion": {"numPromoted": 3, "numAudited": 3}}
    manifest["spec"]["dataCurve"] = {"sampleSizes": [40, 80], "seeds": 2}
    bench.write(manifest)
    bench.behaviour["seconds"] = 1.0
    generator = random.Random(seed)
    kills = 0
    while True:
        process = bench.start()
        try:
            process.communicate(timeout=generator.uniform(0.2, 0.6) if kills < 20 else PATIENCE_SECONDS)
            break
        except subprocess.TimeoutExpired:
            # Alone: what it started goes on.
            process.kill()
            process.communicate()
            kills += 1

    assert process.returncode == 0
    assert kills == 20
    starts = Counter(bench.lines("start"))
    assert set(starts.values()) == {1}, "a job was started twice"
    assert len(starts) == 1 + 12 + 7 + 4 + 1
    assert Counter(bench.lines("end")) == starts
    assert bench.most_at_once() <= 2
    for trial in bench.status()["trials"]:
        assert [attempt["reason"] for attempt in trial["attempts"]] == ["Succeeded"] * (trial["rung"] + 1)
        assert len(trial["measurements"]) == trial["rung"] + 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interrupted_study_saves_its_checkpoints_and_goes_on_later(bench, number):
    bench.behaviour["seconds"] = 20
    process = bench.start()
    bench.until("two trials", lambda: sum(name.startswith("t") for name in bench.lines("start")) == 2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, errors) == (130, "")
    assert "stopping: the jobs write their checkpoints; press Ctrl-C again to kill them instead" in output
    assert "toy is not complete (stopped); the same command goes on where it was" in output
    assert sorted(bench.lines("stop")) == ["t000-r0", "t001-r0"]
    # A job goes when its result is known, and when it has stopped; its files have hidden names until they are swept up.
    assert not list((bench.home / "jobs").glob("[!.]*"))
    attempts = [attempt for trial in bench.status()["trials"] for attempt in trial["attempts"]]
    assert [attempt["reason"] for attempt in attempts] == ["AskedToStop", "AskedToStop"]
    assert all(attempt["finishedAt"] for attempt in attempts)

    bench.behaviour["seconds"] = 0.05
    assert bench.call()[0] == 0
    assert Counter(bench.lines("start"))["t000-r0"] == 2
    assert Counter(bench.lines("end"))["t000-r0"] == 1


@pytest.mark.slow
def test_a_second_interrupt_kills_what_does_not_stop(bench):
    bench.behaviour |= {"seconds": 600, "is_deaf": True}
    process = bench.start()
    bench.until("two trials", lambda: sum(name.startswith("t") for name in bench.lines("start")) == 2)
    process.send_signal(signal.SIGINT)
    bench.until("the request", lambda: len(list((bench.home / "jobs").glob("*/deleted"))) == 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 130
    assert "killing the jobs; what they did since their last checkpoint is done again next time" in output
    bench.behaviour |= {"seconds": 0.05, "is_deaf": False}
    assert bench.call()[0] == 0
    assert {t["state"] for t in bench.status()["trials"]} <= {"Completed", "Stopped"}


@pytest.mark.slow
def test_arms_that_cannot_run_and_arms_that_diverge_are_data(bench):
    bench.behaviour["ends"] = {"t001": 10, "t002": 11}

    code, output, _ = bench.call()

    assert code == 0
    trials = bench.status()["trials"]
    assert trials[1]["measurements"][0]["diverged"] is True and float(trials[1]["measurements"][0]["value"]) == 0
    assert (trials[2]["state"], trials[2]["message"]) == ("Abandoned", "ending with 11")
    assert Counter(bench.lines("start"))["t001-r0"] == Counter(bench.lines("start"))["t002-r0"] == 1
    assert "ending with 11" in output


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        pytest.param("prepare", "the source must be a directory or a file, got 'nowhere'", id="the data"),
        pytest.param("t001", "trial t001: ending with 12", id="the model"),
    ],
)
def test_a_study_that_cannot_run_fails_with_the_trainers_sentence(bench, job, sentence):
    bench.behaviour["ends"] = {job: 12}

    code, output, errors = bench.call()

    assert (code, errors) == (1, "")
    assert f"toy failed: {sentence}" in output
    assert f"to begin anew, delete {bench.home}" in output
    # It stays failed until somebody does.
    assert bench.call()[0] == 1


@pytest.mark.slow
def test_a_study_whose_data_could_not_be_prepared_is_mended_by_its_manifest(bench):
    bench.behaviour["ends"] = {"prepare": 12}
    assert bench.call()[0] == 1
    bench.behaviour["ends"] = {}
    manifest = a_manifest()
    manifest["spec"]["data"]["maxPages"] = 50
    bench.write(manifest)

    assert bench.call()[0] == 0


@pytest.mark.slow
def test_a_running_study_can_be_read_and_not_run_twice(bench):
    bench.behaviour["seconds"] = 30
    process = bench.start()
    bench.until("progress", lambda: list(bench.directory.glob("runs/default/*/trials/t001/progress.json")))

    code, _, errors = bench.call("run")
    assert code == 2
    assert errors == (
        f"finetune-study: the study in {bench.home} is already being run by process {process.pid}; "
        "stop that one with Ctrl-C, or watch it with `finetune-study trials`\n"
    )
    code, output, _ = bench.call("trials")
    assert code == 0
    assert "toy: Exploring, 0 of 6 trials measured" in output and "Running: train" in output
    trials = json.loads(bench.call("trials", "--format", "json")[1])
    assert [trial["state"] for trial in trials] == ["Running", "Running"]
    assert json.loads(bench.call("report", "--format", "json")[1])["stage"] == "Exploring"

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130


def test_a_final_evaluation_shows_how_far_it_is(bench):
    bench.behaviour["evaluation_seconds"] = 600
    process = bench.start()
    bench.until("progress", lambda: list(bench.directory.glob("runs/default/*/final-evaluation/progress.json")))

    output = bench.call("trials")[1]
    assert "toy: Evaluating, 6 of 6 trials measured" in output
    assert "final evaluation: winner 120 of 400 questions, 1 min 08 s left" in output

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_SECONDS)


@pytest.mark.slow
def test_a_finished_study_is_read_in_both_formats(bench):
    bench.call()

    values = json.loads(bench.call("report", "--format", "json")[1])
    table = bench.call("report")[1]

    assert values["stage"] == "Completed" and values["winner"] in table
    assert values["headline"] in table
    assert "rule extractor" in table


def test_whoever_asks_is_told_what_takes_long_and_what_was_not_read(bench, capsys, monkeypatch):
    bench.call()
    short, long = bench.directory / "short.txt", bench.directory / "long.txt"
    short.write_text("a kettle")
    long.write_text("a kettle, and much more")
    command = ["ask", str(bench.manifest), str(short), str(long), "--format", "json"]
    trainer = (sys.executable, str(study_command.STAND_IN_TRAINER))
    cut = (
        f"finetune-study: warning: {long} is longer than `spec.trainer.maxLengthTokens` (512) allows; "
        "only a part of it was read\n"
    )

    assert main(command, trainer=trainer) == 0
    output, errors = capsys.readouterr()
    assert json.loads(output) == {str(short): {"name": "a kettle"}, str(long): {"name": "a kettle, "}}
    assert errors == cut

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(command, trainer=trainer) == 0
    first, *rest = capsys.readouterr().err.splitlines(keepends=True)
    assert first.startswith(f"loading {bench.directory / 'model'} with ") and first.endswith("/adapter …\n")
    assert rest == [cut]


def test_a_suspended_study_runs_nothing(bench):
    manifest = a_manifest()
    manifest["spec"]["suspend"] = True
    bench.write(manifest)

    code, output, _ = bench.call()

    assert code == 130
    assert "toy is not complete (spec.suspend is true)" in output
    assert bench.lines("start") == []


def test_what_is_for_a_cluster_is_ignored_in_one_sentence(bench):
    manifest = a_manifest()
    manifest["spec"] |= {"suspend": True, "ttlSecondsAfterFinished": 60}
    manifest["spec"]["trainer"]["template"] = {"spec": {"containers": [{"name": "trainer"}]}}
    manifest["spec"]["storage"]["secretName"] = "credentials"
    bench.write(manifest)

    _, output, _ = bench.call()

    fields = "`spec.ttlSecondsAfterFinished`, `spec.trainer.template`, `spec.storage.secretName`"
    assert f"for a cluster, and ignored here: {fields}\n" in output


@pytest.mark.slow
def test_a_terminal_gets_a_live_table(bench):
    bench.behaviour["seconds"] = 1.5
    master, slave = pty.openpty()
    environment = {**bench.environment(), "TERM": "xterm-256color", "COLUMNS": "160", "LINES": "50"}
    process = subprocess.Popen([*COMMAND, "run", str(bench.manifest)], env=environment, stdout=slave, stderr=slave)
    os.close(slave)
    output = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(master, 65536):
            output += chunk
    os.close(master)

    assert process.wait(PATIENCE_SECONDS) == 0
    text = output.decode(errors="replace")
    assert "Running: train" in text
    assert "toy: Promoting, 6 of 6 trials measured" in text
    assert "The winner beats the rule extractor" in text


def test_the_plan_says_the_arithmetic_before_anything_runs(bench):
    code, output, _ = bench.call("plan")

    assert code == 0
    assert "toy: 6 trials to 20 % of 3 epochs, then 4 to the end (2 promoted, 1 audited, the baseline)" in output
    assert (
        "training of the search alone: 13.2 passes over the training set instead of 18 (27% less); less time is saved, "
        in output
    )
    assert "because trials start and evaluate again 4 times" in output
    assert "`finetune-study plan --calibrate` measures it" in output
    assert not (bench.directory / "runs").exists()


def with_places(storage: str, source: str, test_source: str, model: str) -> dict[str, Any]:
    manifest = a_manifest()
    manifest["spec"]["data"] = {"source": source, "testSource": test_source, "attributes": ["name"]}
    manifest["spec"]["trainer"]["baseModel"]["uri"] = model
    manifest["spec"]["storage"] = {"uri": storage}
    return manifest


def test_the_plan_names_each_path_that_is_not_there(bench, capsys):
    bench.write(with_places("runs", "gone.jsonl", "pages.jsonl", "hf://owner/model"))
    assert main(["plan", str(bench.manifest)]) == 2
    output, errors = capsys.readouterr()
    # What it costs is told all the same.
    assert "toy: 6 trials to 20 % of 3 epochs" in output
    assert errors == f"finetune-study: `spec.data.source` must exist, got '{bench.directory}/gone.jsonl' {RELATIVE}\n"

    bench.write(with_places("runs", f"file://{bench.directory}/pages.jsonl", "s3://there/test.jsonl", "nowhere"))
    assert main(["plan", str(bench.manifest)]) == 2
    assert [line.split("`")[1] for line in capsys.readouterr().err.splitlines()] == ["spec.trainer.baseModel.uri"]


def test_a_path_of_a_study_in_a_bucket_may_be_of_a_volume_of_a_cluster(bench, capsys):
    bench.write(with_places("s3://studies/toy", "s3://there/pages.jsonl", "s3://there/test.jsonl", "/models/base"))

    assert main(["plan", str(bench.manifest)]) == 0
    assert capsys.readouterr().err == (
        "finetune-study: `spec.trainer.baseModel.uri` must exist, got '/models/base' "
        f"{RELATIVE}; on a cluster a volume may hold it; {HUB}\n"
    )


@pytest.mark.slow
def test_a_calibrated_plan_prepares_the_data_once(bench):
    code, output, _ = bench.call("plan", "--calibrate")

    assert code == 0
    # 6 × (10 + 0.6 × 80 × 2 + 40 × 0.5) + 4 × (10 + 2.4 × 80 × 2 + 40 × 0.5) + 10 + 4 × 140 × 0.5 seconds.
    assert "0.75 accelerator-hours" in output
    # Four trials start and evaluate once more for 10 + 40 × 0.5 seconds, and two do not train 2.4 × 80 × 2 seconds.
    assert "final evaluation: 40.2 minutes spent, 10.8 minutes saved against running every measured" in output
    assert "batch size 16: 3 epochs × ⌊320 / 16⌋ = 60 steps, the first measurement after 12" in output
    assert bench.call()[0] == 0
    assert Counter(bench.lines("start"))["prepare"] == 1


# --- A teacher ------------------------------------------------------------------------------------------------------


def with_teacher(endpoint: str, **changes: Any) -> dict[str, Any]:
    manifest = a_manifest()
    teacher = {"endpoint": endpoint, "model": "large", "secretName": "teacher", **changes}
    manifest["spec"]["data"]["labels"] = {"from": "Teacher", "teacher": teacher}
    return manifest


def say_kettle(prompt: str) -> dict[str, str | None]:
    name, price = (re.findall(pattern, prompt) for pattern in (r"Kettle No \d+", r"\$(\d+\.50)"))
    return {"name": name[-1] if name else None, "price": price[-1] if price else None}


@pytest.fixture
def taught(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[OddTeacher]:
    """A study whose pages a server labels, prepared as the trainer does it."""
    (bench.directory / "model").rmdir()
    save_tokenizer(bench.directory / "model")
    (bench.directory / "environments").mkdir()
    bench.behaviour |= {"prepares": True, "environments": str(bench.directory / "environments")}
    page = "<html><body><h1>Kettle No {0}</h1><p>Boils water in a minute or so.</p><p>Price: ${0}.50</p></body></html>"
    records = [{"url": f"https://shop{n}.example/", "html": page.format(n)} for n in range(10, 60)]
    (bench.directory / "pages.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setenv(TEACHER_API_KEY, KEY)
    with OddTeacher(say_kettle) as server:
        bench.write(with_teacher(server.endpoint))
        yield server


@pytest.mark.slow
def test_a_teachers_key_reaches_preparing_alone_and_is_written_nowhere(bench, taught):
    code, output, errors = bench.call()

    assert (code, errors) == (0, "")
    assert set(taught.authorizations) == {f"Bearer {KEY}"}
    environments = {path.name: json.loads(path.read_text()) for path in (bench.directory / "environments").iterdir()}
    assert environments["prepare"].pop(TEACHER_API_KEY) == KEY
    assert set(environments) == {*bench.lines("start")} >= {*EVERY_JOB, "final-evaluation"}
    shutil.rmtree(bench.directory / "environments")
    files = [path for path in bench.directory.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"status.json", "study.json", "ledger.json", "report.json", "summary.json"} <= names
    assert any(path.suffix == ".log" for path in files) and any("teacher-answers" in path.parts for path in files)
    everything = output + json.dumps(environments) + "".join(path.read_bytes().decode("latin-1") for path in files)
    assert KEY not in everything
    assert "teacher large: 50 of 50 pages are labelled" in bench.call("plan")[1]


@pytest.mark.slow
def test_an_error_that_repeats_the_key_does_not_bring_it_into_the_status(bench, taught):
    taught.always = Fault.UNAUTHORIZED
    manifest = with_teacher(taught.endpoint)
    bench.write(manifest)

    process = bench.start()
    bench.until("the end of preparing", lambda: bench.home.exists() and any(bench.home.rglob("exit.json")))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)

    everything = output + "".join(
        path.read_bytes().decode("latin-1") for path in (bench.directory / "runs").rglob("*") if path.is_file()
    )
    assert "the key is refused: status 401" in everything
    assert KEY not in everything


@pytest.mark.slow
def test_a_second_study_asks_the_teacher_nothing_twice(bench, taught):
    assert bench.call()[0] == 0
    asked = len(taught.requests)
    manifest = with_teacher(taught.endpoint)
    manifest["metadata"]["name"] = "other"
    bench.write(manifest)
    assert bench.call()[0] == 0
    assert (asked, len(taught.requests)) == (50, 50)


def test_a_teacher_that_wants_a_key_is_not_asked_without_one(bench, taught, monkeypatch):
    monkeypatch.delenv(TEACHER_API_KEY)
    code, _, errors = bench.call()
    assert code != 0
    assert "the environment variable TEACHER_API_KEY must hold the teacher's key" in errors
    assert taught.requests == []


def test_the_plan_bounds_what_a_teacher_may_cost(bench, taught):
    bench.write(with_teacher(taught.endpoint, maxTokens=50_000, maxAnswerTokens=100, selfConsistencySamples=10))
    output = " ".join(bench.call("plan")[1].split())
    # 512 of text, 100 + 2 × 25 around it, 100 of the answer; 50 pages and 10 of them again.
    assert "teacher large: at most 60 requests × 762 tokens" in output
    assert "= 45,720" in output
    assert "`spec.data.labels.teacher.maxTokens` ends the asking at 50,000 tokens" in output
    assert taught.requests == []


# --- Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifest", "sentences"),
    [
        pytest.param({}, None, id="nothing at all"),
        pytest.param(
            changed(numTrials=0), ["`spec.numTrials` must be a whole number from 1 to 500, got 0"], id="no trials"
        ),
        pytest.param(
            changed(numTrials=3),
            ["`spec.numTrials` must be at least 4 (2 promoted + 1 audited + the baseline), got 3"],
            id="fewer trials than promotions",
        ),
        pytest.param(
            changed(data={"source": "gone", "attributes": ["price"], "split": {"testPercent": 10}}),
            ["`spec.data.source` must exist, got '{directory}/gone' " + RELATIVE],
            id="no such pages",
        ),
        pytest.param(
            changed(
                trainer={"baseModel": {"uri": "nowhere"}, "epochs": 1}, data={"source": "x", "attributes": ["sku"]}
            ),
            [
                "`spec.trainer.baseModel.uri` must exist, got '{directory}/nowhere' " + f"{RELATIVE}; {HUB}",
                "`spec.data.source` must exist, got '{directory}/x' " + RELATIVE,
            ],
            id="no such model and no such pages",
        ),
        pytest.param(
            changed(storage={"uri": "ftp://host/x"}),
            ["`spec.storage.uri` must be a path or start with s3:// or file:// and name something, got 'ftp://host/x'"],
            id="a scheme that is no store",
        ),
        pytest.param(
            changed(storage={"uri": "pages.jsonl"}),
            ["{directory}/pages.jsonl/.finetune-study/default/toy must be a directory that can be written"],
            id="a file as store",
        ),
        pytest.param(
            changed(parallelTrials="two"),
            ["`spec.parallelTrials` must be a whole number from 1 to 100, got 'two'"],
            id="a word for a number",
        ),
        pytest.param(
            changed(baseline={"learning_rate": "1", "batch_size": "8"}),
            ["`spec.baseline.learning_rate` must lie in the search space: from 0.0001 to 0.01, got '1'"],
            id="a baseline outside the space",
        ),
        pytest.param(
            changed(trainer={"baseModel": {"uri": "model"}, "epochs": 1, "nodes": 2}),
            ["`spec.trainer.nodes` must be 1 on one machine, got 2"],
            id="more nodes than one machine has",
        ),
        pytest.param(
            changed(hyperband={}),
            ["`spec.hyperband` must not be given, because it is not a field, got {{}}"],
            id="a field that is not built",
        ),
    ],
)
def test_a_bad_manifest_is_refused_with_sentences_and_no_traceback(bench, capsys, manifest, sentences):
    bench.write(manifest)

    assert main(["run", str(bench.manifest)]) == 2

    errors = capsys.readouterr().err.splitlines()
    assert errors and all(line.startswith("finetune-study: ") for line in errors)
    if sentences is not None:
        message = [line.removeprefix("finetune-study: ").removeprefix(f"{bench.manifest}: ") for line in errors]
        assert message == [sentence.format(directory=bench.directory) for sentence in sentences]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param([], "the following arguments are required: COMMAND", id="no command"),
        pytest.param(["walk"], "invalid choice: 'walk'", id="an unknown command"),
        pytest.param(["run"], "the following arguments are required: STUDY.YAML", id="no manifest"),
        pytest.param(["run", "a.yaml", "b.yaml"], "unrecognized arguments: b.yaml", id="two manifests"),
        pytest.param(["run", "a.yaml", "--fast"], "unrecognized arguments: --fast", id="an unknown flag"),
        pytest.param(["plan", "a.yaml", "--plain"], "unrecognized arguments: --plain", id="another command's flag"),
        pytest.param(
            ["report", "a.yaml", "--format", "pdf"], "argument --format: invalid choice: 'pdf'", id="a format"
        ),
        pytest.param(
            ["run", "a.yaml", "--directory"], "argument --directory: expected one argument", id="no directory"
        ),
    ],
)
def test_bad_flags_are_refused_by_the_parser(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as end:
        main(arguments)

    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "plan", "trials", "report"])
def test_a_manifest_that_does_not_exist_is_said(bench, capsys, command):
    path = bench.directory / "other.yaml"

    assert main([command, str(path)]) == 2
    assert capsys.readouterr().err == f"finetune-study: {path} must exist\n"


@pytest.mark.parametrize("command", ["trials", "report"])
def test_a_study_that_was_never_run_has_nothing_to_read(bench, capsys, command):
    assert main([command, str(bench.manifest)]) == 2
    assert capsys.readouterr().err == (
        f"finetune-study: the study toy must have been run here: there is no {bench.home / 'study.json'}\n"
    )


def test_the_report_of_a_cluster_s_study_is_said_to_be_watched(capsys):
    manifest = Path(__file__).parents[2] / "manifests" / "samples" / "cluster.yaml"
    assert main(["report", str(manifest)]) == 2
    assert capsys.readouterr().err.endswith("study.json; `finetune-study watch` reads those of a cluster\n")


def learner_of(bench: Bench, earlier: str) -> None:
    """Turn to the manifest of a study that learns from another one."""
    bench.manifest = bench.directory / "second.yaml"
    bench.write({**changed(warmStartFrom=[{"study": earlier}]), "metadata": {"name": "second"}})


@pytest.mark.slow
def test_a_study_learns_from_one_that_was_run_beside_it(bench):
    assert bench.call()[0] == 0
    learner_of(bench, "toy")
    _, plan, _ = bench.call("plan")
    assert "warm start: the best arm of the study toy, once that has ended" in plan

    code, output, errors = bench.call()

    assert code == 0, output + errors
    [copy] = bench.directory.glob("runs/default/second-*/earlier/toy.json")
    assert len(json.loads(copy.read_text())["trials"]) == 6


@pytest.mark.slow
def test_a_study_beside_it_that_was_not_run_to_its_end_is_named(bench):
    learner_of(bench, "none")
    code, _, errors = bench.call()
    where = bench.home.parent / "none" / "study.json"
    rule = "spec.warmStartFrom[0].study must name a study of namespace default"
    assert (code, errors) == (
        2,
        f"finetune-study: {rule}, got 'none', which was not run here: there is no {where}\n",
    )

    bench.manifest = bench.directory / "study.yaml"
    bench.behaviour["seconds"] = 30
    process = bench.start()
    bench.until("a trial", lambda: bench.lines("start")[1:])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_SECONDS)
    begun = bench.lines("start")
    learner_of(bench, "toy")
    code, _, errors = bench.call()
    assert code == 2
    assert f"{rule}, got 'toy', which is Exploring: run it to its end before" in errors
    assert bench.lines("start") == begun


@pytest.mark.slow
def test_a_changed_manifest_is_refused_once_there_are_trials(bench):
    bench.call()
    bench.write(changed(seed=5, numTrials=5))

    code, _, errors = bench.call()

    assert code == 2
    assert errors.splitlines() == [
        "finetune-study: `spec.numTrials` must not be lowered once the study has trials: it was 6, got 5",
        "finetune-study: `spec.seed` must not change once the study has trials: it was null, got 5",
        f"finetune-study: to try another study, give it another metadata.name; to begin anew, delete {bench.home}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param('{"version": 1, "status": {"trials": 7}}', "the study's status must be one that", id="not ours"),
        pytest.param("{", "must be as it was written here: StoredStatus must be JSON", id="half a file"),
        pytest.param("[]", "StoredStatus must be an object, got []", id="another form"),
        pytest.param('{"version": 1}', "StoredStatus.status must be given", id="half an object"),
    ],
)
def test_a_status_that_cannot_be_read_is_said_with_its_file(bench, content, sentence):
    bench.call()
    (bench.home / "status.json").write_text(content)

    for command in ("run", "trials", "report"):
        code, _, errors = bench.call(command)
        assert code == 2
        assert errors.startswith(f"finetune-study: {bench.home / 'status.json'}") and sentence in errors


@pytest.mark.slow
def test_a_study_file_that_is_not_ours_is_said(bench):
    bench.call()
    (bench.home / "study.json").write_text("{}")

    for command in ("run", "plan", "trials", "report"):
        code, _, errors = bench.call(command)
        sentence = "must be as it was written here: AcceptedStudy.uid must be given; AcceptedStudy.spec must be given"
        assert (code, errors) == (2, f"finetune-study: {bench.home / 'study.json'} {sentence}\n")


@pytest.mark.slow
def test_data_that_cannot_be_prepared_ends_a_calibration_with_the_trainers_sentence(bench):
    bench.behaviour["ends"] = {"prepare": 12}

    code, _, errors = bench.call("plan", "--calibrate")

    assert code == 2
    assert errors == (
        "finetune-study: the data must be preparable, but toy-prepare ended with exit code 12: "
        "the source must be a directory or a file, got 'nowhere'\n"
    )


# --- watch ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_is_watched_while_it_runs_and_an_interrupt_ends_that(bench: Bench) -> None:
    bench.behaviour["seconds"] = 0.5
    running = bench.start("run")
    bench.until("the study", (bench.home / "study.json").exists)
    watching = bench.start("watch", "--port", "0")
    assert watching.stdout is not None
    address = re.search(r"127\.0\.0\.1:(\d+)/ until Ctrl-C", watching.stdout.readline())
    assert address is not None
    news = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=PATIENCE_SECONDS)
    news.request("GET", "/news")
    events, pages = news.getresponse(), []
    while not any("The winner beats the rule extractor" in page for page in pages):
        if events.readline().startswith(b"event: page"):
            asking = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=PATIENCE_SECONDS)
            asking.request("GET", "/page")
            pages.append(asking.getresponse().read().decode())
    # Each was another one, and the first came before the study had an end.
    assert len({*pages}) == len(pages) > 1
    assert "The winner" not in pages[0]
    running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 0
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=PATIENCE_SECONDS)
    assert watching.returncode == 130
