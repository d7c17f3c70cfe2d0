"""Jobs as processes: what the local runner promises when jobs, supervisors or the command itself die."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from builders.processes import is_alive
from study_operator.laptop import supervisor
from study_operator.laptop.runner import LocalRunner, StudyBusyError, environment_of, exclusive
from study_operator.reconcile.runner import JobKind, JobPhase, JobSpec, JobStatus
from trial_trainer.contract import TEACHER_API_KEY
from trial_trainer.cores import count_cores

PATIENCE_SECONDS = 60.0
"""Never slept through: only how long a hung test takes to fail on a busy machine."""


class Bench:
    """A study directory with a runner whose jobs run one line of Python each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.changed = threading.Event()
        self.trace = directory / "trace"
        self.memory_kills = directory / "vmstat"
        directory.mkdir(exist_ok=True)
        self.memory_kills.write_text("nr_free_pages 7\noom_kill 0\n")
        self.runner = self.a_runner()

    def a_runner(self, *, parallel: int = 1, grace_seconds: float = 30.0) -> LocalRunner:
        """Return a runner as the next command would make it."""
        return LocalRunner(
            self.directory,
            parallel,
            # The configuration is a program: `TRIAL_CONFIG` says what the job does.
            command=(sys.executable, "-S", "-c", "import os; exec(os.environ['TRIAL_CONFIG'])"),
            environment={"TRACE": str(self.trace)},
            grace_seconds=grace_seconds,
            memory_kills=str(self.memory_kills),
            on_change=self.changed.set,
        )

    def job(self, name: str) -> JobStatus | None:
        """Return what the runner says of a job."""
        return next((job for job in self.runner.jobs() if job.name == name), None)

    def until(self, subject: str, condition) -> None:
        """Wait for something that a signal or a process brings about."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:.0f} s for: {subject}"
            self.changed.wait(0.02)
            self.changed.clear()

    def until_finished(self, name: str) -> JobStatus:
        """Wait for a job's end."""
        self.until(f"the end of {name}", lambda: (job := self.job(name)) and job.phase is JobPhase.FINISHED)
        job = self.job(name)
        assert job is not None
        return job

    def until_traced(self, word: str) -> None:
        """Wait until a job wrote a word."""
        self.until(f"{word} in the trace", lambda: self.trace.exists() and word in self.trace.read_text())

    def processes(self, name: str) -> tuple[int, int]:
        """Return the numbers of a job's supervisor and first process."""
        attempt = json.loads((self.directory / "jobs" / name / supervisor.ATTEMPT).read_text())
        return attempt["supervisor"][0], attempt["process"][0]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "study")
    yield bench
    bench.runner.kill()
    bench.until("the end of every job", lambda: bench.runner.running() == 0)


def a_job(name: str, program: str = "pass", kind: JobKind = JobKind.TRIAL, processes: int = 1) -> JobSpec:
    """Return a job that runs a program."""
    return JobSpec(name=name, kind=kind, config=textwrap.dedent(program), processes=processes)


TRACE_AND_WAIT = """
    import os, time
    open(os.environ["TRACE"], "a").write("up\\n")
    time.sleep(600)
"""
CHECKPOINT_ON_SIGTERM = """
    import os, signal, sys, time
    def save(*_):
        open(os.environ["TRACE"], "a").write("saved\\n")
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    open(os.environ["TRACE"], "a").write("up\\n")
    time.sleep(600)
"""
DEAF = """
    import os, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(os.environ["TRACE"], "a").write("up\\n")
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("program", "exit_code", "reason", "message"),
    [
        pytest.param("print('done')", 0, "", "done", id="stop step reached"),
        pytest.param("print('loss is nan'); raise SystemExit(10)", 10, "", "loss is nan", id="diverged"),
        pytest.param("raise SystemExit(11)", 11, "", "", id="the arm cannot run"),
        pytest.param("import sys; sys.exit('no such page')", 1, "", "no such page", id="an uncaught error"),
        pytest.param("raise SystemExit(12)", 12, "", "", id="the study cannot run"),
        pytest.param("raise SystemExit(143)", 143, "", "", id="asked to stop"),
        pytest.param("import os; os.kill(os.getpid(), 11)", 139, "", "", id="segmentation fault"),
        pytest.param("import os; os.kill(os.getpid(), 9)", 137, "Killed", "", id="killed by somebody"),
    ],
)
def test_a_finished_job_tells_its_exit_code_and_its_last_words(bench, program, exit_code, reason, message):
    bench.runner.launch(a_job("j", program))

    job = bench.until_finished("j")

    assert (job.exit_code, job.reason, job.message) == (exit_code, reason, message)
    assert job.started_at is not None and job.finished_at is not None and job.started_at <= job.finished_at


def test_a_kill_by_the_kernel_for_lack_of_memory_is_told_apart(bench):
    program = f"""
        import os
        open({str(bench.memory_kills)!r}, "w").write("oom_kill 1\\n")
        os.kill(os.getpid(), 9)
    """
    bench.runner.launch(a_job("j", program))

    job = bench.until_finished("j")

    assert (job.exit_code, job.reason) == (137, "OOMKilled")


def test_a_command_that_does_not_exist_is_an_end_and_not_a_wait(bench):
    bench.runner = LocalRunner(bench.directory, 1, command=("/nowhere/trainer",), on_change=bench.changed.set)
    bench.runner.launch(a_job("j"))

    job = bench.until_finished("j")

    assert (job.exit_code, job.reason) == (127, "CannotStart")
    assert "cannot start /nowhere/trainer: " in job.message


def test_launching_a_name_again_starts_nothing(bench):
    program = "import os; open(os.environ['TRACE'], 'a').write('up\\n')"
    for _ in range(3):
        bench.runner.launch(a_job("j", program))
    first = bench.until_finished("j")
    bench.runner.launch(a_job("j", program))

    assert bench.job("j") == first
    assert bench.trace.read_text() == "up\n"


def test_each_run_of_a_name_is_another_attempt_with_its_own_log(bench):
    attempts = set()
    for _ in range(3):
        bench.runner.launch(a_job("j", "import os; print(os.environ['TRIAL_ATTEMPT'])"))
        job = bench.until_finished("j")
        assert job.message == job.attempt
        attempts.add(job.attempt)
        bench.runner.delete("j")
        bench.until("j is forgotten", lambda: bench.job("j") is None)

    assert len(attempts) == 3
    assert len(list((bench.directory / "logs").glob("j-*.log"))) == 3


def test_deleting_lets_a_job_save_its_checkpoint(bench):
    bench.runner.launch(a_job("j", CHECKPOINT_ON_SIGTERM))
    bench.until_traced("up")

    bench.runner.delete("j")
    bench.until("j is forgotten", lambda: bench.job("j") is None)

    assert bench.trace.read_text() == "up\nsaved\n"


def test_a_job_that_ignores_the_request_is_killed_after_the_grace_period(bench):
    bench.runner = bench.a_runner(grace_seconds=1)
    bench.runner.launch(a_job("j", DEAF))
    bench.until_traced("up")
    _, process = bench.processes("j")

    bench.runner.delete("j")
    bench.until("j is forgotten", lambda: bench.job("j") is None)

    bench.until("its process is gone", lambda: not is_alive(process))


def test_a_job_deleted_at_the_moment_of_its_launch_never_outlives_it(bench):
    for _ in range(10):
        bench.runner.launch(a_job("j", TRACE_AND_WAIT))
        bench.runner.delete("j")
        bench.until("j is forgotten", lambda: bench.job("j") is None)

    assert bench.runner.running() == 0


def test_killing_everything_waits_for_nobody(bench):
    bench.runner.launch(a_job("j", DEAF))
    bench.until_traced("up")

    bench.runner.kill()
    job = bench.until_finished("j")

    assert job.exit_code == 137


def test_what_a_job_orphaned_in_its_group_goes_with_it(bench):
    program = """
        import os, subprocess, sys
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        open(os.environ["TRACE"], "w").write(str(child.pid))
    """
    bench.runner.launch(a_job("j", program))
    bench.until_finished("j")
    child = int(bench.trace.read_text())

    bench.until("the child is gone", lambda: not is_alive(child))


def test_a_later_command_adopts_what_runs_and_learns_how_the_rest_ended(bench):
    bench.runner.launch(a_job("runs", TRACE_AND_WAIT))
    bench.runner.launch(a_job("ends", "raise SystemExit(10)"))
    bench.until_traced("up")
    bench.until_finished("ends")
    before = bench.runner.jobs()

    bench.runner = bench.a_runner()

    assert bench.runner.jobs() == before
    assert [job.phase for job in before] == [JobPhase.FINISHED, JobPhase.RUNNING]
    bench.changed.clear()
    os.kill(bench.processes("runs")[1], signal.SIGTERM)
    assert bench.changed.wait(PATIENCE_SECONDS), "an adopted job's end must wake the loop"
    assert bench.until_finished("runs").exit_code == 143


def test_a_deletion_goes_on_after_the_command_that_asked_for_it(bench):
    bench.runner.launch(a_job("j", DEAF))
    bench.until_traced("up")
    # As if the command had been killed right after its request was written.
    (bench.directory / "jobs" / "j" / supervisor.DELETED).touch()

    bench.runner = bench.a_runner()
    bench.runner.kill()

    bench.until("j is forgotten", lambda: bench.job("j") is None)


def test_a_job_that_was_ordered_but_never_started_is_started_by_the_next_command(bench, monkeypatch):
    def dies(*_args: object, **_kwargs: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", dies)
        with pytest.raises(MemoryError):
            bench.runner.launch(a_job("j", "raise SystemExit(10)"))
    assert bench.job("j").phase is JobPhase.PENDING

    bench.runner = bench.a_runner()

    assert bench.until_finished("j").exit_code == 10


def test_a_half_written_order_is_thrown_away(bench):
    (bench.directory / "jobs" / ".new-123").mkdir()

    bench.runner = bench.a_runner()

    assert bench.runner.jobs() == ()
    assert list((bench.directory / "jobs").iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's parent-death signal")
def test_a_job_whose_supervisor_is_killed_saves_and_ends_and_is_nobodys_fault(bench):
    bench.runner.launch(a_job("j", CHECKPOINT_ON_SIGTERM))
    bench.until_traced("up")
    os.kill(bench.processes("j")[0], signal.SIGKILL)

    job = bench.until_finished("j")

    assert bench.trace.read_text() == "up\nsaved\n"
    assert (job.exit_code, job.reason) == (None, "NodeLost")


def test_a_job_whose_supervisor_is_killed_counts_as_running_until_it_ends(bench):
    bench.runner = bench.a_runner(grace_seconds=0)
    bench.runner.launch(a_job("j", DEAF))
    bench.until_traced("up")
    lone, process = bench.processes("j")
    os.kill(lone, signal.SIGKILL)
    bench.until("the supervisor is gone", lambda: not is_alive(lone))

    assert bench.job("j").phase is JobPhase.RUNNING
    assert bench.a_runner().jobs()[0].phase is JobPhase.RUNNING

    bench.runner.kill()
    assert bench.until_finished("j").reason == "NodeLost"
    bench.until("its process is gone", lambda: not is_alive(process))


@pytest.mark.parametrize(
    ("kind", "parallel", "processes", "share"),
    [
        pytest.param(JobKind.TRIAL, 1, 1, 1, id="one trial at a time has every core"),
        pytest.param(JobKind.TRIAL, 2, 1, 2, id="two at a time have half each"),
        pytest.param(JobKind.TRIAL, 1, 2, 2, id="so have two ranks of one"),
        pytest.param(JobKind.TRIAL, 64, 64, count_cores(), id="never less than one"),
    ],
)
def test_trials_share_the_cores(bench, kind, parallel, processes, share):
    bench.runner = bench.a_runner(parallel=parallel)
    bench.runner.launch(a_job("j", "import os; print(os.environ['OMP_NUM_THREADS'])", kind, processes))

    assert bench.until_finished("j").message == str(max(1, count_cores() // share))


def test_a_teachers_key_is_in_the_environment_of_preparing_alone(bench, monkeypatch):
    monkeypatch.setenv(TEACHER_API_KEY, "sk-0123456789")
    bench.runner.launch(a_job("t0", f"print(os.environ.get('{TEACHER_API_KEY}', 'no key'))"))
    assert bench.until_finished("t0").message == "no key"
    kinds = (*JobKind, None)
    assert [kind for kind in kinds if TEACHER_API_KEY in environment_of(kind)] == [JobKind.PREPARE]


def test_only_one_command_drives_a_study(tmp_path):
    with exclusive(tmp_path), pytest.raises(StudyBusyError) as refusal, exclusive(tmp_path):
        pass
    assert f"is already being run by process {os.getpid()};" in str(refusal.value)
    # And it is free again.
    with exclusive(tmp_path):
        pass


DRIVER = """
import os, sys, textwrap
from pathlib import Path
from study_operator.laptop.runner import LocalRunner, exclusive
from study_operator.reconcile.runner import JobKind, JobPhase, JobSpec
import queue
directory, trace, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
changes = queue.SimpleQueue()
program = '''import os, time
def note(word):
    with open(os.environ["TRACE"], "a") as file: file.write(word + " " + os.environ["NAME"] + chr(10))
note("start"); time.sleep(0.15); note("end")'''
with exclusive(directory):
    runner = LocalRunner(
        directory, 2, command=(sys.executable, "-S", "-c", "import os; exec(os.environ['TRIAL_CONFIG'])"),
        environment={"TRACE": trace}, on_change=lambda: changes.put(None))
    while True:
        jobs = {job.name: job for job in runner.jobs()}
        ended = [j for j in jobs.values() if j.phase is JobPhase.FINISHED]
        if len(ended) == len(names):
            print("all", {job.exit_code for job in ended}, flush=True)
            break
        for name in [n for n in names if n not in jobs][: 2 - (len(jobs) - len(ended))]:
            named = f"import os; os.environ['NAME'] = {name!r}\\n" + program
            runner.launch(JobSpec(name=name, kind=JobKind.TRIAL, config=named))
        changes.get()
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_command_killed_again_and_again_starts_every_job_once(tmp_path, seed):
    names = [f"j{i:02d}" for i in range(12)]
    trace = tmp_path / "trace"
    trace.touch()
    generator = random.Random(seed)
    arguments = [sys.executable, "-c", DRIVER, str(tmp_path / "study"), str(trace), ",".join(names)]
    kills = 0
    while True:
        process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, text=True)
        try:
            output, _ = process.communicate(timeout=PATIENCE_SECONDS if kills >= 10 else generator.uniform(0.05, 0.45))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1

    assert kills >= 2
    assert output == "all {0}\n"
    lines = trace.read_text().splitlines()
    assert sorted(lines) == sorted(f"{word} {name}" for name in names for word in ("start", "end"))
    running = 0
    for line in lines:
        running += 1 if line.startswith("start") else -1
        assert running <= 2


def environment() -> dict[str, str]:
    """Return our environment with the packages on the path."""
    root = Path(__file__).resolve().parents[3]
    return {**os.environ, "PYTHONPATH": f"{root / 'operator'}:{root / 'trainer'}"}


def test_a_jobs_digest_is_remembered(bench: Bench) -> None:
    bench.runner.launch(replace(a_job("s1-t000-r0"), digest="0123"))
    assert bench.until_finished("s1-t000-r0").digest == "0123"
