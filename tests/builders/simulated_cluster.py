"""A cluster of dicts in which whole studies run in milliseconds, and everything goes wrong that can.

`run_study` drives the real `tick` through one random study: the operator is killed between any two calls to the outside
world, status reads are stale, writes conflict, job lists lag behind, nodes are lost, arms run out of memory or diverge,
the bucket goes away, people suspend, resume and edit, and the status is restored to an earlier one. What must hold at
every moment is checked at every moment (`Broken` is raised), and the end against what an onlooker knows who saw
everything.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from study_operator import names
from study_operator.errors import ConflictError
from study_operator.ledger.status import parse_status
from study_operator.ledger.trial import (
    GIVEN_UP,
    ConfirmationsEnd,
    Continuation,
    CurveEnd,
    Ledger,
    Origin,
    SearchEnd,
    Trial,
    TrialState,
)
from study_operator.optimizer.designer import DesignerError, Suggestion
from study_operator.reconcile.job_specs import build_job_of, build_trial_job
from study_operator.reconcile.runner import EndedAttempt, JobKind, JobPhase, JobSpec, JobStatus
from study_operator.reconcile.tick import TickResult, tick
from study_operator.settings import Settings
from study_operator.spec.metrics import Direction
from study_operator.spec.study import (
    Budget,
    CurveArm,
    Data,
    DataCurve,
    EarlyEvaluation,
    LogUniform,
    Objective,
    OutcomeConstraint,
    Parameter,
    Promotion,
    Storage,
    Study,
)
from trial_trainer.artifacts import ArtifactError
from trial_trainer.contract import Augmentation, BaseModel, LabelSource, Split, TrainerSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
LONGEST_STUDY_TICKS = 5_000


class Broken(AssertionError):  # noqa: N818  # a broken promise, not an error of the simulation
    """A promise was not kept."""


class Crashed(Exception):  # noqa: N818
    """The operator was killed here."""


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How often things go wrong, each as a probability."""

    crash: float = 0.02
    """Before, and again after, each call to the outside world."""
    stale_status: float = 0.05
    stale_jobs: float = 0.2
    conflict: float = 0.03
    node_lost: float = 0.08
    """Of one attempt, as the next ones."""
    interrupted: float = 0.05
    no_measurement: float = 0.02
    replaced: float = 0.5
    """Of one attempt that the environment ended, or that ran out of memory: the cluster starts another in its place."""
    stuck: float = 0.02
    """Of one job: its image cannot be pulled, until it is deleted."""
    out_of_memory: float = 0.06
    """Of one arm, as the next one."""
    diverged: float = 0.1
    unusable: float = 0.002
    """Of one study: the trainer finds that its data cannot be used."""
    storage_away: float = 0.02
    edit: float = 0.02
    """Of one tick: somebody suspends, resumes, or changes a number."""
    restored: float = 0
    """Of one tick: the status becomes one that was written before, or none. From then on other arms are proposed."""


CALM = Weather(
    crash=0,
    stale_status=0,
    stale_jobs=0,
    conflict=0,
    node_lost=0,
    interrupted=0,
    no_measurement=0,
    replaced=0,
    stuck=0,
    out_of_memory=0,
    diverged=0,
    unusable=0,
    storage_away=0,
    edit=0,
)
STORMY = Weather()
RESTORING = replace(STORMY, restored=0.03)
MOST_RESTORES = 3
SETTINGS = Settings(attempts_limit=4, interruptions_limit=6, backoff_seconds=5, report_interval_seconds=3600)


@dataclass
class Job:
    """A job of the simulated cluster."""

    spec: JobSpec
    attempt: str
    starts_at: datetime
    ends_at: datetime
    exit_code: int
    reason: str = ""
    is_ended: bool = False
    stopped_at: datetime | None = None
    is_stuck: bool = False
    created_at: datetime = START
    earlier: tuple[EndedAttempt, ...] = ()


@dataclass
class World:
    """Everything outside of the operator. Stands in for status store, runner, artifact store and optimizer at once."""

    study: Study
    chance: random.Random
    weather: Weather
    now: datetime = START
    versions: list[Any] = field(default_factory=lambda: [None])
    """The status at each version: as JSON in every fourth study; values that nobody may change are quicker."""
    live: dict[str, Job] = field(default_factory=dict)
    """Jobs that exist, by name."""
    seen: dict[str, JobStatus] = field(default_factory=dict)
    """What the operator was last told of each job."""
    objects: dict[str, bytes] = field(default_factory=dict)
    ended_attempts: list[tuple[str, str]] = field(default_factory=list)
    """Name and attempt of every run whose end was there to be seen."""
    replaced: set[str] = field(default_factory=set)
    """Jobs of which the cluster itself started another attempt."""
    known_attempts: set[str] = field(default_factory=set)
    """Attempts whose end the tick under way was told while their job goes on."""
    faults_of_arms: set[tuple[str, str]] = field(default_factory=set)
    """Jobs, with their digests, that ended by their arm's fault, where the operator was told: they never run again."""
    status_read: Mapping[str, Any] | None = None
    """What the tick under way has read."""
    values: dict[tuple[str, int, str], float] = field(default_factory=dict)
    """Every measurement that was written, by trial, rung and digest."""
    restores: int = 0
    """How often the status was restored."""
    restored_version: int = 0
    """The version that the last restore made: what was before is gone for everybody."""
    refused: int = 0
    """How many results of other arms were deleted."""
    reports: int = 0
    uri: str = "memory"
    given_parallel: int = 0
    is_given_suspended: bool = False
    attempts: int = 0

    # The status store.

    def read(self, key: str | None = None, most_bytes: int | None = None) -> Any:
        """Read the status (no key), or an object."""
        if key is not None:
            return self._read_object(key)
        self._may_crash()
        version = len(self.versions) - 1
        if version > self.restored_version and self._happens(self.weather.stale_status):
            version = self.chance.randrange(max(self.restored_version, version - 3), version)
        self.status_read = self.status_of(version)
        return self.status_read, version

    def confirm(self, version: Any) -> None:
        """Conflict where the status that was read is stale."""
        self._may_crash()
        if version != len(self.versions) - 1:
            raise ConflictError("stale")
        self._may_crash()

    def write(self, status: Any, version: Any) -> Any:
        """Write the status, or conflict; or an object, to see whether that can be done."""
        self._may_crash()
        if isinstance(status, str):
            if self._happens(self.weather.storage_away):
                raise ArtifactError("the bucket is away")
            return None
        if self._happens(self.weather.conflict):
            self.versions.append(self.versions[-1])
        if version != len(self.versions) - 1:
            raise ConflictError("stale")
        self.versions.append(status if self.study.seed % 4 else json.dumps(status, allow_nan=False))
        self._may_crash()
        return version + 1

    def status_of(self, version: int) -> Mapping[str, Any] | None:
        """Return a version of the status."""
        status: Mapping[str, Any] | None = self.versions[version]
        return json.loads(status) if isinstance(status, str) else status

    # The artifact store.

    def _read_object(self, key: str) -> bytes | None:
        if self._happens(self.weather.storage_away):
            raise ArtifactError("the bucket is away")
        return self.objects.get(key)

    def write_new(self, key: str, data: bytes) -> bool:
        """Never called by the operator."""
        raise Broken(f"the operator must not write {key} ({len(data)} bytes)")

    def upload(self, key: str, source: Path) -> None:
        """Never called by the operator."""
        raise Broken(f"the operator must not upload {source} to {key}")

    def download(self, key: str, target: Path) -> bool:
        """Never called by the operator."""
        raise Broken(f"the operator must not download {key} to {target}")

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under a prefix."""
        if self._happens(self.weather.storage_away):
            raise ArtifactError("the bucket is away")
        yield from sorted(key for key in self.objects if key.startswith(prefix))

    # The runner.

    def jobs(self) -> Sequence[JobStatus]:
        """List the jobs; what changed since the last time may be missing, but not what this operator has created."""
        self._may_crash()
        fresh = {name: self._status_of(name, job) for name, job in self.live.items()}
        if self._happens(self.weather.stale_jobs):
            stale = {**fresh, **self.seen}
            self.known_attempts = {past.attempt for job in stale.values() for past in job.earlier}
            return list(stale.values())
        self.seen = fresh
        self.known_attempts = {past.attempt for job in fresh.values() for past in job.earlier}
        for name, job in self.live.items():
            if job.is_ended and job.exit_code in (10, 11):
                self.faults_of_arms.add((name, job.spec.digest))
        return list(fresh.values())

    def launch(self, spec: JobSpec) -> None:
        """Create a job, checking that it may be."""
        self._may_crash()
        if spec.name not in self.live:
            self._check_launch(spec)
            self.live[spec.name] = self._start(spec)
        self._may_crash()

    def delete(self, name: str | None = None) -> Any:
        """Stop a job, which is gone at the next look; or delete the objects under a prefix."""
        self._may_crash()
        if name and "/" in name:
            return self._delete_objects(name)
        job = self.live.get(name or "")
        if job is not None and name:
            if not job.is_ended and self.now >= job.starts_at:
                job.stopped_at = self.now
            # A job that is deleted takes along what this tick did not know of it.
            unseen = {(name, past.attempt) for past in job.earlier if past.attempt not in self.known_attempts}
            self.ended_attempts = [ended for ended in self.ended_attempts if ended not in unseen]
            del self.live[name]
        self._may_crash()
        return None

    def _delete_objects(self, prefix: str) -> int:
        status = self.status_of(-1)
        if prefix in self.objects:
            self._check_foreign(prefix)
            del self.objects[prefix]
            self.refused += 1
            return 1
        if status is None or status["outcome"] is None or any(not job.is_ended for job in self.live.values()):
            raise Broken(f"{prefix} deleted while a trial may need it")
        keys = [key for key in self.objects if key.startswith(f"{prefix}/")]
        for key in keys:
            del self.objects[key]
        self._may_crash()
        return len(keys)

    # The optimizer.

    def suggest(self, study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        """Propose arms from the ledger alone; sometimes fewer than asked, and none after a study's own limit."""
        self._may_crash()
        limit = 10**9 if study.seed % 11 else 4
        if len(trials) >= limit:
            if any(t.is_busy for t in trials):
                return ()
            raise DesignerError("the search space is exhausted")
        count = min(count, limit - len(trials))
        return tuple(
            Suggestion(
                arm={"learning_rate": 1e-5 * (len(trials) + i + 1) * (1 + self.restores)}, generation_node="Sobol"
            )
            for i in range(count)
        )

    # What happens by itself.

    def restore(self) -> None:
        """Put the status back to one that was written before; what is in the bucket, and what runs, stays."""
        self.restores += 1
        self.versions.append(self.chance.choice(self.versions))
        self.restored_version = len(self.versions) - 1
        # Nobody can know any more what was forgotten.
        self.ended_attempts.clear()
        self.faults_of_arms.clear()

    def advance(self, until: datetime) -> None:
        """Let time pass: jobs end, and write what they found."""
        self.now = until
        for job in self.live.values():
            while not job.is_stuck and not job.is_ended and job.ends_at <= until:
                if self._is_replaced(job):
                    self._replace(job)
                else:
                    job.is_ended = True
                    self._end(job)

    def next_event(self) -> datetime | None:
        """Return when a job starts or ends next."""
        times = [at for j in self.live.values() if not (j.is_ended or j.is_stuck) for at in (j.starts_at, j.ends_at)]
        return min((at for at in times if at > self.now), default=None)

    def _start(self, spec: JobSpec) -> Job:
        self.attempts += 1
        is_stuck = self._happens(self.weather.stuck)
        starts = self.now + timedelta(seconds=self.chance.choice((0, 0, 30)))
        ends = starts + timedelta(seconds=self.chance.randrange(1, 400))
        code, reason = self._fate(spec)
        return Job(
            spec=spec,
            attempt=f"a{self.attempts}",
            starts_at=starts,
            ends_at=ends,
            exit_code=code,
            reason=reason,
            is_stuck=is_stuck,
            created_at=self.now,
        )

    def _is_replaced(self, job: Job) -> bool:
        """Say whether the cluster itself starts another attempt: where a job's policy ignores how this one ended."""
        return job.exit_code in (137, 143) and self._happens(min(0.9, self.weather.replaced))

    def _replace(self, job: Job) -> None:
        self.ended_attempts.append((job.spec.name, job.attempt))
        self.replaced.add(job.spec.name)
        past = EndedAttempt(
            attempt=job.attempt,
            started_at=job.starts_at,
            finished_at=job.ends_at,
            exit_code=job.exit_code,
            reason=job.reason,
        )
        self.attempts += 1
        job.earlier, job.attempt = (*job.earlier, past), f"a{self.attempts}"
        job.starts_at = job.ends_at + timedelta(seconds=self.chance.choice((0, 20)))
        job.ends_at = job.starts_at + timedelta(seconds=self.chance.randrange(1, 400))
        job.exit_code, job.reason = self._fate(job.spec)

    def _fate(self, spec: JobSpec) -> tuple[int, str]:
        weather = self.weather
        if self._happens(weather.node_lost):
            return self.chance.choice(((137, "NodeLost"), (1, ""), (137, "")))
        if self._happens(weather.interrupted):
            return 143, ""
        if self._happens(weather.no_measurement):
            return 0, "Nothing"
        if self._happens(weather.unusable):
            return 12, ""
        if spec.kind is JobKind.TRIAL:
            # An arm's own fate is the same however often it is tried.
            arm = random.Random(f"{self.study.seed}/{spec.trial}/{spec.rung}")
            if arm.random() < weather.out_of_memory:
                return arm.choice(((11, ""), (137, "OOMKilled")))
            if arm.random() < weather.diverged:
                return 10, ""
        return 0, ""

    def _end(self, job: Job) -> None:
        spec = job.spec
        self.ended_attempts.append((spec.name, job.attempt))
        if job.exit_code != 0 or job.reason:
            return
        if spec.kind is JobKind.PREPARE:
            self.objects["dataset/summary.json"] = _summary(spec.digest, has_test=self.study.seed % 3 > 0)
        elif spec.kind is JobKind.FINAL_EVALUATION:
            self.objects["final-evaluation/final-evaluation.json"] = _final_evaluation(spec.digest)
        else:
            # Coarse, so that there are equals.
            seeds = f"{self.study.seed}/{spec.trial}/{spec.digest}", f"{self.study.seed}/{spec.digest}/{spec.rung}"
            arm, later = (random.Random(seed).random() for seed in seeds)
            value = round(0.9 * (arm + 0.1 * later * (spec.rung > 0)), 2)
            key = f"{names.rung_key(spec.trial, spec.rung)}/measurement.json"
            # A trainer of the plainest kind: a result that stands is its own.
            if key not in self.objects:
                self.values[spec.trial, spec.rung, spec.digest] = value
                self.objects[key] = _measurement(spec, value, json.loads(spec.config)["stop_step"])
            self.objects[f"{names.rung_key(spec.trial, spec.rung)}/checkpoints/{job.attempt}/weights"] = b""

    def _status_of(self, name: str, job: Job) -> JobStatus:
        phase = JobPhase.PENDING
        if job.is_ended:
            phase = JobPhase.FINISHED
        elif self.now >= job.starts_at and not job.is_stuck:
            phase = JobPhase.RUNNING
        return JobStatus(
            name=name,
            kind=job.spec.kind,
            phase=phase,
            digest=job.spec.digest,
            attempt=job.attempt,
            started_at=None if phase is JobPhase.PENDING else job.starts_at,
            finished_at=job.ends_at if job.is_ended else None,
            exit_code=job.exit_code if job.is_ended else None,
            reason=self._reason_of(job),
            earlier=job.earlier,
            waits_since=job.created_at if job.is_stuck else None,
            is_stuck=job.is_stuck,
        )

    def _reason_of(self, job: Job) -> str:
        if job.is_stuck:
            return "ImagePullBackOff"
        return job.reason if job.is_ended and job.reason != "Nothing" else ""

    # What must hold at every moment.

    def _check_launch(self, spec: JobSpec) -> None:
        if self.is_given_suspended:
            raise Broken(f"{spec.name} launched while suspended")
        status = self.status_read
        if status is None:
            raise Broken(f"{spec.name} launched before anything was written")
        if spec.kind is JobKind.FINAL_EVALUATION:
            if status["winner"] is None:
                raise Broken("the test set must not be read before the winner is written")
            if self.study.promotion.confirm_seeds and status["confirmationsEnd"] is None:
                raise Broken("the test set must not be read before the confirmations have ended")
            if self.study.data_curve is not None and status["dataCurveEnd"] is None:
                raise Broken("the test set must not be read before the data curve has ended")
        if spec.kind is not JobKind.TRIAL:
            return
        trials = [j for j in self.live.values() if j.spec.kind is JobKind.TRIAL and not j.is_ended]
        if any((j.spec.trial, j.spec.rung) == (spec.trial, spec.rung) for j in trials):
            raise Broken(f"two live jobs for {spec.trial} on rung {spec.rung}")
        if len(trials) >= self.given_parallel:
            raise Broken(f"{spec.name} is one more than {self.given_parallel} trials")
        index = int(spec.trial[1:])
        runs = [*status["trials"], *(status["confirmations"] or ()), *(status["dataCurve"] or ())]
        known = runs[index] if index < len(runs) else None
        if index >= len(status["trials"]) and status["winner"] is None:
            raise Broken(f"{spec.name} launched before there was a winner")
        if known is None or known["rung"] != spec.rung or known["state"] not in ("Pending", "Running"):
            raise Broken(f"{spec.name} launched, but what is written is {known}")
        if _digest_of(self.objects.get(f"{names.rung_key(spec.trial, spec.rung)}/measurement.json")) == spec.digest:
            raise Broken(f"{spec.name} launched though it was measured")
        if (spec.name, spec.digest) in self.faults_of_arms:
            raise Broken(f"{spec.name} launched though its arm cannot run")

    def _check_foreign(self, key: str) -> None:
        """Only another arm's result may be deleted."""
        if not self.restores:
            raise Broken(f"{key} deleted, but it is nobody else's")
        ledger = parse_status(self.status_of(-1)).ledger
        of = JobKind.PREPARE if key.startswith("dataset/") else JobKind.FINAL_EVALUATION
        if build_job_of(self.study, ledger, ledger.runs[int(key[8:11])] if key[:1] == "t" else of).digest == (
            _digest_of(self.objects[key])
        ):
            raise Broken(f"{key} deleted, but it is its own")

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self.chance.random() < probability

    def _may_crash(self) -> None:
        if self._happens(self.weather.crash):
            # A new process lists its jobs anew.
            self.seen = {}
            raise Crashed


def run_study(seed: int, weather: Weather = STORMY, count_refused: Callable[[int], None] = lambda _: None) -> Ledger:
    """Run one random study to its end and check all that was promised. Every tenth has it twice as bad.

    Args:
        seed: of all that is drawn.
        weather: how often things go wrong.
        count_refused: told how many results of other arms were deleted.

    Raises:
        Broken: where a promise was not kept.
    """
    chance = random.Random(seed)
    if seed % 10 == 9:
        weather = _twice_as_bad(weather)
    world = World(study=a_random_study(chance, seed), chance=chance, weather=weather)
    for _ in range(LONGEST_STUDY_TICKS):
        result = _tick(world)
        if world.restores < MOST_RESTORES and world._happens(weather.restored):
            world.restore()
            continue
        if result is not None and result.is_done:
            ledger = parse_status(world.status_of(-1)).ledger
            _check_end(world, ledger)
            count_refused(world.refused)
            return ledger
        if world._happens(weather.edit):
            world.study = _edited(world.study, chance)
        if result is None or result.is_idle or chance.random() < 0.3:
            _let_time_pass(world, result)
        if result is not None and result.is_idle and world.study.suspend:
            world.study = replace(world.study, suspend=False)
    raise Broken(f"the study has not ended after {LONGEST_STUDY_TICKS} ticks: {world.versions[-1]}")


def _twice_as_bad(weather: Weather) -> Weather:
    return replace(weather, **{name: 2 * chance for name, chance in vars(weather).items()})


def _tick(world: World) -> TickResult | None:
    world.given_parallel, world.is_given_suspended = world.study.parallel_trials, world.study.suspend
    try:
        return tick(
            world.study,
            statuses=world,
            runner=world,
            artifacts=world,  # type: ignore[arg-type]
            designer=world,
            now=world.now,
            settings=SETTINGS,
            reporter=lambda *_: None,
        )
    except Crashed:
        return None


def _let_time_pass(world: World, result: TickResult | None) -> None:
    wakes = [at for at in (world.next_event(), result.wake_at if result else None) if at is not None]
    soon = world.now + timedelta(seconds=world.chance.choice((1, 10)))
    # News comes at once, or the slow timer is first.
    world.advance(min(wakes) if wakes and world.chance.random() < 0.9 else soon)


def _edited(study: Study, chance: random.Random) -> Study:
    match chance.randrange(3):
        case 0:
            return replace(study, suspend=not study.suspend)
        case 1:
            return replace(study, parallel_trials=chance.randrange(1, 5))
        case _:
            return replace(study, num_trials=study.num_trials + 1)


def a_random_study(chance: random.Random, seed: int) -> Study:
    """Return a study of a few trials."""
    promoted, audited = chance.randrange(1, 4), chance.choice((0, 0, 1, 3))
    rungs = chance.choice(_RUNGS)
    has_baseline = chance.random() < 0.8
    starting = chance.choice((0, 0, 0, 2))
    least = max(promoted + audited * len(rungs) + has_baseline, starting + has_baseline)
    curve = _a_random_curve(chance) if has_baseline else None
    return Study(
        name="sim",
        namespace="default",
        uid="0123456789",
        objective=chance.choice(_OBJECTIVES),
        outcome_constraints=chance.choice(
            ((), (), (OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.5),))
        ),
        parameters=(Parameter(name="learning_rate", search_space=LogUniform(min=1e-5, max=1e-1)),),
        baseline={"learning_rate": 1e-3} if has_baseline else None,
        starting_arms=tuple({"learning_rate": 2e-3 + i} for i in range(starting)),
        num_trials=least + chance.choice((0, 1, 2, 3, 5)),
        parallel_trials=chance.randrange(1, 5),
        max_failed_trials=chance.randrange(0, 6),
        seed=seed,
        early_evaluation=EarlyEvaluation(rungs=rungs),
        promotion=Promotion(
            num_promoted=promoted,
            num_audited=audited,
            promoted_percents=tuple(chance.choice((33, 50, 100)) for _ in rungs[1:]),
            confirm_seeds=chance.choice((0, 0, 1, 3)) if has_baseline else 0,
        ),
        budget=Budget(accelerator_hours=chance.choice((None, None, None, 0.5))),
        data_curve=curve,
        data=Data(
            source="/pages",
            attributes=("price",),
            labels_from=LabelSource.MARKUP,
            split=Split(),
            augment=Augmentation(copies=1) if curve is not None and curve.compare_augmentation else None,
        ),
        base_model=BaseModel(uri="/model"),
        trainer=TrainerSettings(epochs=3, max_length_tokens=512),
        storage=Storage(uri="/bucket"),
    )


def _a_random_curve(chance: random.Random) -> DataCurve | None:
    """Return a data curve of a few runs, in every second study; some sizes are too small or too large for the data."""
    if chance.random() < 0.5:
        return None
    return DataCurve(
        sample_sizes=tuple(sorted(chance.sample((8, 16, 100, 300, 640, 1000), k=chance.randrange(1, 4)))),
        seeds=chance.randrange(1, 3),
        arm=chance.choice(list(CurveArm)),
        compare_augmentation=chance.random() < 0.3,
    )


_RUNGS = ((20,), (5, 20), (5, 20, 50))
"""Of 120 steps they end at steps 6, 24 and 60."""

_OBJECTIVES = (
    Objective(metric="accuracy", direction=Direction.MAXIMIZE),
    Objective(metric="validation_loss", direction=Direction.MINIMIZE),
)


# --- What an onlooker says who saw everything --------------------------------------------------------------------


def _check_end(world: World, ledger: Ledger) -> None:
    study, trials = world.study, ledger.trials
    if [t.index for t in trials] != list(range(len(trials))):
        raise Broken("the ledger has gaps")
    _check_nothing_lost(world, ledger.runs)
    outcome = ledger.outcome
    if outcome is None:
        raise Broken("a study that is done must have an outcome")
    _check_tidiness(world, trials)
    _check_continuity(study, trials)
    if outcome.failed:
        _check_failure(study, ledger, outcome.reason)
        return
    decided = (
        len(trials) if ledger.search_end is not SearchEnd.ALL_TRIALS_MEASURED else min(study.num_trials, len(trials))
    )
    if len(trials) != decided or any(t.is_busy or t.state is TrialState.PAUSED for t in trials):
        raise Broken("a complete study must have no trial under way")
    _check_promotions(study, trials)
    _check_winner(study, ledger)
    _check_confirmations(study, ledger)
    _check_curve(study, ledger)


def _check_nothing_lost(world: World, trials: Sequence[Trial]) -> None:
    for trial in trials:
        digest = build_trial_job(world.study, trial, "00ff").digest
        for measurement in trial.measurements:
            known = world.values.get((trial.name, measurement.rung, digest))
            if not measurement.diverged and measurement.value != known:
                raise Broken(f"{trial.name} has {measurement.value} on rung {measurement.rung}; its arm has {known}")
    for name, rung, digest in world.values if not world.restores else ():
        trial = trials[int(name[1:])]
        measurement = trial.measurement(rung)
        if trial.state is TrialState.FAILED and names.trial_job(world.study.name, name, rung) in world.replaced:
            # Given up by how an attempt ended, while the cluster already ran the next one.
            continue
        if measurement is None or measurement.diverged:
            raise Broken(f"the measurement of {name} on rung {rung} with digest {digest} is lost: {measurement}")
    rungs = range(world.study.last_rung + 1)
    by_name = {names.trial_job(world.study.name, t.name, r): t for t in trials for r in rungs}
    if world.restores:
        by_name = {}
    for job, attempt in world.ended_attempts:
        if job in by_name and all(a.id != attempt for a in by_name[job].attempts):
            raise Broken(f"attempt {attempt} of {job} is in no ledger")
    for trial in trials:
        ids = [a.id for a in trial.attempts]
        if len(ids) != len(set(ids)):
            raise Broken(f"an attempt of {trial.name} is counted twice: {ids}")
        if any(a.is_open for a in trial.attempts):
            raise Broken(f"an attempt of {trial.name} never ends")


def _check_tidiness(world: World, trials: Sequence[Trial]) -> None:
    left = {(key.split("/")[1], int(key.split("/")[3])) for key in world.objects if "/checkpoints/" in key}
    last = world.study.last_rung
    full = {(t.name, last) for t in trials if t.state is TrialState.COMPLETED and not t.measurements[-1].diverged}
    if full != left and (full or len(left) > 1):
        raise Broken(f"checkpoints are left of {sorted(left)}, and should be of {sorted(full)}")


def _check_failure(study: Study, ledger: Ledger, reason: str) -> None:
    trials = ledger.trials
    failed = sum(t.state is TrialState.FAILED for t in trials)
    is_unusable = any(a.reason == "StudyCannotRun" for t in trials for a in t.attempts)
    full = [t for t in trials if t.state is TrialState.COMPLETED and not t.measurements[-1].diverged]
    is_right = {
        "TooManyFailedTrials": failed > study.max_failed_trials,
        "StudyCannotRun": is_unusable,
        "NothingTrains": not _find_able(study, trials) or all(t.state is TrialState.ABANDONED for t in trials[:6]),
        "NoWinner": not full,
        "PrepareFailed": ledger.prepare.state == "Failed",
        "FinalEvaluationFailed": ledger.final_evaluation.state == "Failed",
    }
    if not is_right[reason]:
        raise Broken(f"the study must not have failed with {reason}")


def _find_able(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """Return who may continue from the furthest rung that any trial is on, or as the next best from the one before."""
    rung = max((t.rung for t in trials), default=0)
    on_it = [t for t in trials if t.rung == rung and t.state is TrialState.PAUSED]
    before = [t for t in trials if t.rung == rung - 1 and t.state is TrialState.STOPPED]
    return [
        t
        for t in (*on_it, *before)
        if (m := t.measurement(t.rung)) is not None
        and not m.diverged
        and (t in on_it or t.origin is not Origin.BASELINE)
        and (
            t.continuation in (Continuation.BASELINE, Continuation.AUDITED) or not _breaks_constraints(study, t, t.rung)
        )
    ]


def _breaks_constraints(study: Study, trial: Trial, rung: int) -> bool:
    measurement = trial.measurement(rung)
    has_any = bool(study.outcome_constraints) and measurement is not None
    return has_any and measurement is not None and measurement.metrics["invalid_output_rate"] > 0.5


def _check_continuity(study: Study, trials: Sequence[Trial]) -> None:
    """Each trial was measured on every rung before its own, at the rungs' steps."""
    for trial in trials:
        rungs = [m.rung for m in trial.measurements]
        is_measured = trial.state in (TrialState.PAUSED, TrialState.STOPPED, TrialState.COMPLETED)
        if rungs != list(range(trial.rung + is_measured)):
            raise Broken(f"{trial.name} is {trial.state} on rung {trial.rung} and measured on {rungs}")
        if (trial.state is TrialState.COMPLETED) != (is_measured and trial.rung == study.last_rung):
            raise Broken(f"{trial.name} is {trial.state} on rung {trial.rung} of {study.last_rung}")
        for measurement in trial.measurements:
            if not measurement.diverged and measurement.step != _step_of(study, measurement.rung):
                raise Broken(f"{trial.name} was measured at step {measurement.step} on rung {measurement.rung}")


def _step_of(study: Study, rung: int) -> int:
    return (*(120 * percent // 100 for percent in study.early_evaluation.rungs), 120)[rung]


def _check_promotions(study: Study, trials: Sequence[Trial]) -> None:
    reached = len(trials) - (study.baseline is not None)
    for rung in range(study.last_rung):
        # So many as the manifest says; a share of those that are on the rung, but enough for all that follows.
        later = study.last_rung - rung - 1
        count = study.promotion.num_promoted
        if later:
            share = -(-reached * study.promotion.promoted_percents[rung] // 100)
            count = reached = max(count + study.promotion.num_audited * later, share)
        _check_promotions_from(study, trials, rung, count)


def _check_promotions_from(study: Study, trials: Sequence[Trial], rung: int, count: int) -> None:
    sign = -1 if study.objective.direction is Direction.MAXIMIZE else 1
    measurements = {t.index: m for t in trials if (m := t.measurement(rung)) is not None and not m.diverged}
    others = [
        t
        for t in trials
        if t.index in measurements and t.origin is not Origin.BASELINE and (t.stratum is None or t.stratum >= rung)
    ]
    audited = [t for t in others if t.stratum == rung]
    allowed = [t for t in others if not _breaks_constraints(study, t, rung)]
    order = sorted(allowed, key=lambda t: (sign * measurements[t.index].value, t.index))

    # The best, and the next best for each that left no model on the rung after it.
    expected: set[int] = set()
    lacking = count
    for trial in order:
        if lacking and trial not in audited:
            expected.add(trial.index)
            after = trial.measurement(rung + 1)
            is_given_up = trial.rung == rung + 1 and trial.state in (TrialState.FAILED, TrialState.ABANDONED)
            breaks = rung + 1 < study.last_rung and _breaks_constraints(study, trial, rung + 1)
            lacking -= not (is_given_up or breaks or (after is not None and after.diverged))
    promoted = {t.index for t in others if t.rung > rung and t not in audited}
    if promoted != expected:
        raise Broken(f"promoted from rung {rung} are {sorted(promoted)}, and should be {sorted(expected)}")
    if any(t.continuation is not Continuation.PROMOTED for t in others if t.rung == rung + 1 and t not in audited):
        raise Broken(f"not all that were promoted from rung {rung} go on as promoted")

    top = {t.index for t in order[:count]}
    rest = len(others) - len(top)
    if len(audited) != min(study.promotion.num_audited, rest) or any(t.index in top for t in audited):
        raise Broken(f"audited are {[t.index for t in audited]}, and the top is {sorted(top)} with {rest} others")
    if any(t.inclusion_probability != len(audited) / rest for t in audited):
        raise Broken("an audited trial has a wrong inclusion probability")
    if any(t.state is TrialState.STOPPED and not t.has_diverged for t in audited):
        raise Broken("an audited trial must run to its end")
    baseline = next((t for t in trials if t.origin is Origin.BASELINE), None)
    if baseline is not None and baseline.index in measurements and baseline.rung == rung:
        raise Broken("the baseline must continue")


def _check_winner(study: Study, ledger: Ledger) -> None:
    sign = -1 if study.objective.direction is Direction.MAXIMIZE else 1
    finals = {
        t.index: m
        for t in ledger.trials
        if t.state is TrialState.COMPLETED and (m := t.measurement(study.last_rung)) is not None and not m.diverged
    }
    keeping = {
        i: m for i, m in finals.items() if not study.outcome_constraints or m.metrics["invalid_output_rate"] <= 0.5
    }
    candidates = keeping or finals
    best = min(candidates, key=lambda i: (sign * candidates[i].value, i), default=None)
    if ledger.winner != best:
        raise Broken(f"the winner is {ledger.winner}, and should be {best}")


def _check_confirmations(study: Study, ledger: Ledger) -> None:
    """Winner and baseline ran under as many further seeds as were asked for, in pairs, and nothing else did."""
    runs, end, asked = ledger.confirmations, ledger.confirmations_end, study.promotion.confirm_seeds
    if not asked:
        if runs or end is not None:
            raise Broken("a study that asks for no confirmations must have none")
        return
    baseline = next((t for t in ledger.trials if t.origin is Origin.BASELINE), None)
    has_model = baseline is not None and baseline.state is TrialState.COMPLETED and not baseline.has_diverged
    is_itself = has_model and baseline is not None and baseline.index == ledger.winner
    of = (ledger.winner, baseline.index) if has_model and not is_itself and baseline is not None else ()
    wanted = [(index, study.seed + k) for k in range(1, asked + 1) for index in of]
    found = [(run.repeats, run.seed) for run in runs]
    if found != wanted[: len(runs)]:
        raise Broken(f"the confirmations are {found}, and should be {wanted}")
    is_right = {
        ConfirmationsEnd.ALL_RUNS_ENDED: bool(of) and len(runs) == len(wanted),
        ConfirmationsEnd.BUDGET_EXHAUSTED: len(runs) < len(wanted) and study.budget.accelerator_hours is not None,
        ConfirmationsEnd.NO_MODEL: not has_model,
        ConfirmationsEnd.WINNER_IS_BASELINE: is_itself,
    }
    if end is None or not is_right[end] or len(runs) % 2:
        raise Broken(f"the confirmations must not have ended with {end} after {len(runs)} of {len(wanted)}")
    for index, run in enumerate(runs, len(ledger.trials)):
        if (
            run.index != index
            or run.arm != ledger.trials[run.repeats or 0].arm
            or run.origin is not Origin.CONFIRMATION
        ):
            raise Broken(f"{run.name} must be run {index}, of the arm of trial {run.repeats}")
        ends = [(m.rung, m.step) for m in run.measurements if not m.diverged]
        if run.total_steps != 120 or ends not in ([], [(study.last_rung, 120)]):
            raise Broken(f"{run.name} must have 120 steps and go straight to its end, got {ends}")
        is_measured = run.state is TrialState.COMPLETED
        if is_measured != bool(run.measurements) or not (is_measured or run.state in GIVEN_UP):
            raise Broken(f"{run.name} is {run.state} at the end")


def _check_curve(study: Study, ledger: Ledger) -> None:
    """The arm that was asked for ran with the sizes that fit, the smallest first, and nothing else."""
    curve, runs = study.data_curve, ledger.curve
    if curve is None:
        if runs or ledger.curve_end is not None:
            raise Broken("a study without a data curve must have no runs of one")
        return
    of = next((t for t in ledger.trials if t.origin is Origin.BASELINE), None)
    has_model = of is not None and of.state is TrialState.COMPLETED and not of.measurements[-1].diverged
    if curve.arm is CurveArm.WINNER:
        of, has_model = ledger.trials[ledger.winner or 0], True
    # 640 training samples, and batches of 16.
    fitting = [s for s in curve.sample_sizes if 16 <= s <= 640] if has_model else []
    twice = (True, False) if curve.compare_augmentation else (False,)
    wanted = [(size, study.seed + k, without) for size in fitting for k in range(curve.seeds) for without in twice]
    found = [(run.train_samples, run.seed, run.without_variants) for run in runs]
    if found != wanted[: len(runs)]:
        raise Broken(f"the data curve has {found}, and should have {wanted}")
    is_right = {
        CurveEnd.ALL_RUNS_ENDED: has_model and len(runs) == len(wanted),
        CurveEnd.BUDGET_EXHAUSTED: len(runs) < len(wanted) and study.budget.accelerator_hours is not None,
        CurveEnd.NO_MODEL: not has_model,
    }
    if ledger.curve_end is None or not is_right[ledger.curve_end]:
        raise Broken(f"the data curve must not have ended with {ledger.curve_end} after {len(runs)} of {len(wanted)}")
    for index, run in enumerate(runs, len(ledger.trials) + len(ledger.confirmations)):
        if run.index != index or of is None or run.arm != of.arm or run.origin is not Origin.DATA_CURVE:
            raise Broken(f"{run.name} must be run {index}, of the arm {of and of.arm}")
        steps = 3 * ((run.train_samples or 0) // 16)
        ends = [(m.rung, m.step) for m in run.measurements if not m.diverged]
        if run.total_steps != steps or ends not in ([], [(study.last_rung, steps)]):
            raise Broken(f"{run.name} must have {steps} steps and go straight to its end, got {ends}")
        is_measured = run.state is TrialState.COMPLETED
        if is_measured != bool(run.measurements) or not (is_measured or run.state in GIVEN_UP):
            raise Broken(f"{run.name} is {run.state} at the end")


# --- What jobs write ---------------------------------------------------------------------------------------------


def _measurement(spec: JobSpec, value: float, step: int) -> bytes:
    metric = {"value": value, "standard_error": 0.02, "n": 100}
    invalid = {"value": round(random.Random(f"{spec.trial}/{value}").random(), 3), "standard_error": None, "n": 100}
    return _dump(
        study="sim",
        trial=spec.trial,
        rung=spec.rung,
        digest=spec.digest,
        step=step,
        total_steps=120,
        checkpoint="checkpoints/24-a",
        metrics={"accuracy": metric, "validation_loss": metric, "invalid_output_rate": invalid},
        samples_seen=100,
        tokens_per_second=1.0,
        peak_memory_bytes=1,
        seconds={"train": 1.0},
    )


def _summary(digest: str, *, has_test: bool) -> bytes:
    split = {"pages": 80, "samples": 640, "sites": 40, "tokens": 10_000, "samples_by_attribute": {"price": 80}}
    splits = {"train": split, "validation": split, **({"test": split} if has_test else {})}
    return _dump(
        study="sim",
        splits=splits,
        skipped_pages={},
        dropped_labels={},
        pages_of_test_sites=0,
        warnings=[],
        fingerprint="00ff",
        digest=digest,
    )


def _final_evaluation(digest: str) -> bytes:
    return _dump(study="sim", winner="t000", predictors={}, gains={}, seconds={}, digest=digest)


def _digest_of(result: bytes | None) -> Any:
    return None if result is None else json.loads(result)["digest"]


def _dump(**values: Any) -> bytes:
    return json.dumps(values).encode()
