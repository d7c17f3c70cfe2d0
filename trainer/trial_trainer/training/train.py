"""One rung of one trial, top to bottom: load, train up to the stop step, evaluate, write the measurement last.

    python -m trial_trainer trial.json                          # one process, on an accelerator where there is one
    CUDA_VISIBLE_DEVICES= python -m trial_trainer trial.json    # on the CPU in any case
    TRIAL_CONFIG="$(cat trial.json)" python -m trial_trainer    # as a Job does it

With `"processes": 4` under `"trainer"` the same commands start accelerate's launcher and four ranks. With `"nodes": 2`
beside it each node runs one, here the second:

    MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 JOB_COMPLETION_INDEX=1 python -m trial_trainer trial.json

The loss of a step is (1 / batch size) x the sum over its samples of the mean token cross-entropy of the answer (nats),
the same however the step's pages are spread over rows and ranks. Nothing in a step depends on where the run stops.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import resource
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TypeVar

import accelerate
import peft
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from trial_trainer.artifacts import ArtifactStore, open_store
from trial_trainer.contract import (
    ADAPTER,
    ATTEMPT,
    MEASUREMENT,
    MEASUREMENTS,
    PREDICTIONS,
    TRAINING_LOSSES,
    ExitCode,
    Metric,
    Progress,
    RungMeasurement,
    SiteSum,
    TrialConfig,
    to_json,
)
from trial_trainer.dataset.store import (
    TRAIN,
    VALIDATION,
    Page,
    confirm_fingerprint,
    count_samples,
    read_index,
    read_split,
    read_variants,
)
from trial_trainer.dataset.subset import take_samples
from trial_trainer.errors import ArmError, Diverged, StudyError
from trial_trainer.evaluation.measure import Prediction, measure, sum_by_site
from trial_trainer.evaluation.predict import predict
from trial_trainer.model.load import (
    LoadedModel,
    adapter_parameters,
    add_adapter,
    choose_device,
    load_base,
    save_adapter,
)
from trial_trainer.model.memory import free_memory, is_out_of_memory, must_fit
from trial_trainer.model.rows import (
    MICRO_BATCH_TOKENS,
    Group,
    Row,
    build_row,
    draw_groups,
    fit_rows,
    share_among_ranks,
    step_groups,
)
from trial_trainer.progress import write_progress
from trial_trainer.results import is_there, write_once
from trial_trainer.stop import StopRequest
from trial_trainer.training.checkpoint import (
    Checkpoint,
    Identity,
    RunState,
    UntrainedLoss,
    delete_older,
    find_checkpoint,
    restore,
    save_checkpoint,
)
from trial_trainer.training.schedule import learning_rate

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_GRADIENT_NORM = 1.0
LOSS_WINDOW_STEPS = 10
UNTRAINED_SAMPLES = 64
"""Of the training set, drawn by the study's seed: the untrained loss is their mean, the same for every arm."""
EXPLODED_TIMES, EXPLODED_NATS, EXPLODED_ERRORS = 3.0, 3.0, 10.0
"""A run has diverged when the mean loss of its last ten steps is this many times the untrained loss, and so many nats
and so many standard errors of such a mean above it: a model that learns nothing never gets there, at any batch size."""
UNLEARNT_ERRORS = 5.0
"""Standard errors of the difference between the last steps' mean loss and the untrained one."""
SMALLEST_ARM = {"lora_rank": 1, "lora_alpha": 1, "lora_dropout": 0.0}
"""What needs least memory of all: where one sample does not fit with it, no arm can run."""
CHECKPOINT_SECONDS = 300
"""Time between checkpoints on the way: what a lost node can cost at most."""
PROGRESS_SECONDS = 2.0


def train(config: TrialConfig, stop: StopRequest) -> ExitCode:
    """Run one rung in this rank.

    Returns:
        `ExitCode.STOP_STEP_REACHED` with the measurement written, or `ExitCode.ASKED_TO_STOP` with a checkpoint.

    Raises:
        Diverged: the loss is not finite, or exploded.
        ArmError: the arm cannot run here.
        StudyError: data, model or checkpoint cannot be used.
    """
    # A measurement that is there is the end: another attempt wrote it.
    store = open_store(config.output)
    if is_there(store, MEASUREMENT, config.digest):
        log.info("the measurement of rung %d is already there", config.rung)
        return ExitCode.STOP_STEP_REACHED

    # Load data and model, and go on from the newest checkpoint, if there is one.
    clock = _Clock()
    with clock.phase("load"):
        run = _prepare_run(config, store)
    run.clock = clock
    log.info("step %d of %d, stop at %d", run.step, config.total_steps, config.stop_step)

    # Step by step to the stop step: extra measurements on the way, a checkpoint now and then and when asked to stop.
    with clock.phase("train"):
        while run.step < config.stop_step:
            run.train_step()
            if run.step in config.evaluate_at_steps and run.step < config.stop_step:
                run.write_measurement(f"{MEASUREMENTS}/{run.step}.json")
            if run.agree_to_stop(stop):
                run.save()
                # The last line of a pod's log is what a person reads of its end.
                log.info("asked to stop at step %d of %d: %s is saved", run.step, config.total_steps, run.checkpoint)
                return ExitCode.ASKED_TO_STOP
            run.save_now_and_then()

    # The last checkpoint, then its measurement, which says that it is whole.
    run.save()
    run.write_measurement(MEASUREMENT, stop)
    return ExitCode.STOP_STEP_REACHED


@dataclass(kw_only=True)
class _Clock:
    """Wall seconds by phase. A phase inside another counts for itself alone."""

    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        now = time.monotonic()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    @property
    def current(self) -> str:
        return self._open[-1] if self._open else "save"


@dataclass(kw_only=True)
class _Run:
    """What the loop works on."""

    config: TrialConfig
    store: ArtifactStore
    accelerator: Accelerator
    loaded: LoadedModel
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    pages: tuple[Page, ...]
    variants: Mapping[str, Sequence[Page]] = field(default_factory=dict)
    identity: Identity
    attempt: str
    batch_size: int
    peak_learning_rate: float
    warmup_percent: float
    clock: _Clock = field(default_factory=_Clock)
    step: int = 0
    samples_seen: int = 0
    row_tokens: int
    """Tokens of a row; halved where one does not fit into memory."""
    untrained: UntrainedLoss | None = None
    losses: list[float] = field(default_factory=list)
    """Of every step since the first, in nats per token."""
    tokens_trained: int = 0
    checkpoint: str = ""
    saved_at: float = field(default_factory=time.monotonic)
    told_at: float = 0.0
    started_at: float = field(default_factory=time.monotonic)
    started_at_step: int = 0

    # --- One step ----------------------------------------------------------------------------------------------

    def train_step(self) -> None:
        """Take one optimizer step, the same in every rank."""
        self.loaded.set_training(True)
        groups = step_groups(
            self.pages,
            step=self.step,
            batch_size=self.batch_size,
            seed=self.config.seed,
            variants=self.variants,
        )
        mine = share_among_ranks(groups, self.accelerator.num_processes)[self.accelerator.process_index]
        loss = self._agree(self._accumulate(mine))
        self._refuse_divergence(loss)
        self._sum_gradients()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.step += 1
        self.samples_seen += self.batch_size
        self.tell_progress()

    def _accumulate(self, groups: Sequence[Group]) -> float | _Misfit:
        """Add this rank's share of the step's gradient; return its share of the loss."""
        mask_seed = f"{self.config.seed}/{self.step}"

        def compute(groups: Sequence[Group]) -> tuple[float, int]:
            row = build_row(groups, self.loaded.device, mask_seed)
            loss = answer_loss(self.loaded.logits(row), row) / self.batch_size
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach().double().cpu()), row.tokens

        rows = self._compute_rows(groups, compute)
        if isinstance(rows, _Misfit):
            return rows
        self.tokens_trained += sum(tokens for _, tokens in rows)
        return sum(loss for loss, _ in rows)

    def _compute_rows(self, groups: Sequence[Group], compute: Callable[[Sequence[Group]], T]) -> list[T] | _Misfit:
        """Compute groups in rows that fit into memory: where one does not, all of them begin again, half as long.

        What a row gives does not depend on what lies beside it, so neither do losses and gradients.
        """
        arranged = self.loaded.arrange(groups)
        while True:
            done: list[T] = []
            unfit = None
            for row in fit_rows(arranged, self.row_tokens):
                try:
                    done.append(compute(row))
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    unfit = row
                    break
            if unfit is None:
                return done
            # Its frames held the row's tensors, and went with the error.
            self.optimizer.zero_grad(set_to_none=False)
            free_memory()
            if sum(len(group.questions) for group in unfit) == 1:
                return self._blame(unfit[0])
            tokens = sum(group.tokens for group in unfit)
            self.row_tokens = tokens // 2
            log.warning("a row of %d tokens does not fit into memory; from now on rows have %d", tokens, tokens // 2)

    def _blame(self, sample: Group) -> _Misfit:
        """Say whose fault it is that one sample does not fit: the study's, if it does not with the smallest adapter.

        The run cannot go on after that: its own adapter makes room.
        """
        self.optimizer.state.clear()
        self.optimizer.param_groups.clear()
        self.parameters = {}
        self.loaded = replace(self.loaded, module=self.loaded.module.unload())  # type: ignore[operator]
        free_memory()
        try:
            smallest = add_adapter(self.loaded, SMALLEST_ARM, self.config.trainer, self.config.seed)
            smallest.set_training(True)
            row = build_row([sample], smallest.device)
            answer_loss(smallest.logits(row), row).backward()  # type: ignore[no-untyped-call]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return _Misfit.STUDY
        return _Misfit.ARM

    def _agree(self, share: float | _Misfit) -> float:
        """Return the sum of what every rank found, or blame together."""
        found = [share, 0.0, 0.0] if isinstance(share, float) else [0.0, share is _Misfit.ARM, share is _Misfit.STUDY]
        total, arm, study = self._sum_over_ranks(torch.tensor(found, dtype=torch.float64)).tolist()
        sample = f"one sample of up to {self.config.trainer.max_length_tokens} tokens does not fit into memory"
        if study:
            raise StudyError(f"{sample}, even with an adapter of rank {SMALLEST_ARM['lora_rank']} and no dropout")
        if arm:
            raise ArmError(f"{sample} with this adapter; with one of rank {SMALLEST_ARM['lora_rank']} it does")
        return float(total)

    def _learning_rate(self) -> float:
        return learning_rate(
            self.step,
            peak=self.peak_learning_rate,
            total_steps=self.config.total_steps,
            warmup_percent=self.warmup_percent,
        )

    def measure_untrained(self) -> UntrainedLoss:
        """Measure the loss of single samples as it is before the first step; the ranks share them, and agree."""
        groups = draw_groups(self.pages, samples=UNTRAINED_SAMPLES, seed=self.config.seed)
        mine = share_among_ranks(groups, self.accelerator.num_processes)[self.accelerator.process_index]
        self.loaded.module.eval()

        @torch.no_grad()
        def compute(groups: Sequence[Group]) -> Tensor:
            row = build_row(groups, self.loaded.device)
            return sample_losses(self.loaded.logits(row), row).double().cpu()

        rows = self._compute_rows(mine, compute)
        self._agree(rows if isinstance(rows, _Misfit) else 0.0)
        losses = torch.cat([torch.zeros(0, dtype=torch.float64), *(rows if isinstance(rows, list) else [])])
        sums = torch.stack([torch.tensor(float(len(losses)), dtype=torch.float64), losses.sum(), losses.square().sum()])
        count, total, squares = self._sum_over_ranks(sums).tolist()
        mean = total / count
        if not math.isfinite(mean):
            raise StudyError(f"the untrained model's loss must be finite, got {mean} nats per token")
        return UntrainedLoss(mean=mean, deviation=math.sqrt(max(0.0, squares / count - mean**2)))

    def _refuse_divergence(self, loss: float) -> None:
        if self.untrained is None:
            raise RuntimeError("the untrained loss must be measured before the first step")
        self.losses.append(loss)
        if not math.isfinite(loss):
            raise Diverged(f"the loss of step {self.step + 1} is {loss}")
        recent = self.recent_losses
        mean = sum(recent) / len(recent)
        limit = exploded_loss(self.untrained, self.batch_size)
        if len(recent) == LOSS_WINDOW_STEPS and mean > limit:
            raise Diverged(
                f"the mean loss of steps {self.step - LOSS_WINDOW_STEPS + 2} to {self.step + 1} is {mean:.3f}, "
                f"over {limit:.3f}; untrained it was {self.untrained.mean:.3f}"
            )

    def _sum_gradients(self) -> None:
        if self.accelerator.num_processes == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters.values()]
        flat = self._sum_over_ranks(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        shares = torch.split(flat, [gradient.numel() for gradient in gradients])
        for parameter, gradient in zip(self.parameters.values(), shares, strict=True):
            parameter.grad = gradient.view_as(parameter).clone()

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        reduced: Tensor = self.accelerator.reduce(values.to(self.loaded.device), reduction="sum")
        return reduced.to(values.device)

    # --- Between steps -----------------------------------------------------------------------------------------

    def agree_to_stop(self, stop: StopRequest) -> bool:
        """Return whether any rank was asked to stop: all of them answer alike."""
        if self.accelerator.num_processes == 1:
            return stop.requested
        return bool(self._sum_over_ranks(torch.tensor([1.0 if stop.requested else 0.0])).item())

    def save_now_and_then(self) -> None:
        """Write a checkpoint when the last one is too old, by the first rank's clock."""
        due = 1.0 if self.is_first and time.monotonic() - self.saved_at > CHECKPOINT_SECONDS else 0.0
        if self._sum_over_ranks(torch.tensor([due])).item():
            self.save()

    def save(self) -> None:
        """Write a checkpoint, then drop this attempt's older ones."""
        with self.clock.phase("save"):
            row_tokens = tuple(
                gather_object([self.row_tokens]) if self.accelerator.num_processes > 1 else [self.row_tokens]
            )
            if self.is_first:
                self.tell_progress(force=True)
                state = RunState(
                    identity=self.identity,
                    step=self.step,
                    samples_seen=self.samples_seen,
                    untrained=self.untrained,
                    losses=tuple(self.losses),
                    row_tokens=row_tokens,
                )
                self.checkpoint = save_checkpoint(
                    self.store,
                    attempt=self.attempt,
                    state=state,
                    parameters=self.parameters,
                    optimizer=self.optimizer,
                )
                delete_older(self.store, attempt=self.attempt, keep=self.checkpoint)
            self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()

    def write_measurement(self, key: str, stop: StopRequest | None = None) -> None:
        """Evaluate on the validation set and write a measurement; that of the stop step after the adapter, and once.

        Args:
            key: where.
            stop: given where a checkpoint of this step is saved: a request to stop then need not wait for the end.
        """
        with self.clock.phase("evaluate"):
            self.tell_progress(force=True)
            if stop is not None:
                stop.release()
            predictions = self._predict_validation()
            if stop is not None:
                stop.protect()
            metrics = measure(predictions, has_unlearnt=self._has_unlearnt())
        if not self.is_first:
            return
        with self.clock.phase("save"):
            if key == MEASUREMENT:
                self._write_adapter()
                lines = "".join(to_json(prediction) + "\n" for prediction in predictions)
                self.store.write(PREDICTIONS, lines.encode())
                self.store.write(TRAINING_LOSSES, json.dumps(self.losses).encode())
        by_site = sum_by_site(predictions) if self.config.train_samples is not None else {}
        measurement = self._measurement(metrics, by_site)
        self.tell_progress(force=True)
        if not write_once(self.store, key, measurement):
            log.info("another attempt wrote %s first", key)

    def _has_unlearnt(self) -> bool:
        if self.untrained is None:
            return False
        questions = sum(len(page.questions) for page in self.pages) / len(self.pages)
        return has_unlearnt(
            self.recent_losses, self.untrained, batch_size=self.batch_size, questions_per_page=questions
        )

    def _predict_validation(self) -> list[Prediction]:
        dataset = open_store(self.config.dataset)
        pages, index = read_split(dataset, VALIDATION), read_index(dataset)
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        mine: list[Prediction] = []
        problem: StudyError | None = None
        try:
            mine = predict(self.loaded, pages[rank::ranks], index, self.config.base_model)
        except StudyError as error:
            problem = error
        # A rank that is alone with its problem would leave the others waiting.
        if self._sum_over_ranks(torch.tensor([float(problem is not None)])).item():
            raise problem or StudyError("the evaluation of one page does not fit into another rank's memory")
        return list(gather_object(mine)) if ranks > 1 else mine

    def _write_adapter(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            save_adapter(self.loaded.module, self.config.base_model, Path(name))
            for path in sorted(Path(name).iterdir()):
                self.store.upload(f"{ADAPTER}/{path.name}", path)

    def _measurement(
        self, metrics: Mapping[str, Metric], by_site: Mapping[str, Mapping[str, SiteSum]]
    ) -> RungMeasurement:
        config = self.config
        return RungMeasurement(
            study=config.study,
            trial=config.trial,
            rung=config.rung,
            step=self.step,
            total_steps=config.total_steps,
            checkpoint=self.checkpoint,
            metrics=metrics,
            samples_seen=self.samples_seen,
            tokens_per_second=self.tokens_trained / max(self.clock.seconds.get("train", 0.0), 1e-9),
            peak_memory_bytes=_peak_memory_bytes(self.loaded.device),
            seconds=dict(self.clock.seconds),
            trained_steps=self.step - self.started_at_step,
            versions=versions(),
            by_site=by_site,
            digest=config.digest,
        )

    @property
    def recent_losses(self) -> list[float]:
        """Of the last steps, by which divergence is told."""
        return self.losses[-LOSS_WINDOW_STEPS:]

    @property
    def is_first(self) -> bool:
        """Whether this rank writes."""
        return bool(self.accelerator.is_main_process)

    def tell_progress(self, *, force: bool = False) -> None:
        """Refresh the progress object, at most every few seconds."""
        now = time.monotonic()
        if self.config.progress is None or not self.is_first or (now - self.told_at < PROGRESS_SECONDS and not force):
            return
        self.told_at = now
        done = self.step - self.started_at_step
        eta = (now - self.started_at) / done * (self.config.stop_step - self.step) if done else None
        losses = self.recent_losses
        progress = Progress(
            step=self.step,
            stop_step=self.config.stop_step,
            total_steps=self.config.total_steps,
            loss=sum(losses) / len(losses) if losses else None,
            phase=self.clock.current,
            eta_seconds=eta,
            updated_at=datetime.now(UTC).isoformat(timespec="seconds"),
            digest=self.config.digest,
        )
        write_progress(self.config.progress, progress)


class _Misfit(Enum):
    """Whose fault it is that one sample does not fit into memory."""

    ARM = "arm"
    STUDY = "study"


# --- Before the first step -------------------------------------------------------------------------------------------


def _prepare_run(config: TrialConfig, store: ArtifactStore) -> _Run:
    # The same bits again on the same machine.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if accelerator.num_processes != config.trainer.ranks:
        raise RuntimeError(f"{config.trainer.ranks} ranks must run, got {accelerator.num_processes}")

    # Data, and what of the arm can be refused before a model is loaded.
    dataset = open_store(config.dataset)
    pages = read_split(dataset, TRAIN)
    if config.train_samples is not None:
        pages = take_samples(pages, config.train_samples, seed=config.seed, balanced=config.balanced)
    batch_size = int(config.arm.get("batch_size", 16))
    _refuse_impossible(config, pages, batch_size)
    fingerprint = confirm_fingerprint(dataset, config.dataset_fingerprint, "TrialConfig.dataset")

    # The newest checkpoint of this very run: of its data, arm, seed, length and number of ranks.
    identity = Identity(
        seed=config.seed,
        arm=dict(config.arm),
        total_steps=config.total_steps,
        dataset=fingerprint,
        ranks=accelerator.num_processes,
        train_samples=config.train_samples,
        digest=config.digest,
    )
    checkpoint = _newest_checkpoint(config, store, identity)

    # Model, adapter and optimizer; the schedule sets the learning rate of each step.
    with must_fit("the base model"):
        page = max(pages, key=lambda page: len(page.questions))
        loaded = load_base(config.base_model, config.trainer, choose_device(), page)
    loaded = add_adapter(loaded, config.arm, config.trainer, config.seed)
    parameters = adapter_parameters(loaded.module)
    for parameter in parameters.values():
        # An expert that no token of the first steps goes to has moments in every checkpoint all the same.
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(
        list(parameters.values()),
        lr=0.0,
        weight_decay=float(config.arm.get("weight_decay", config.trainer.weight_decay)),
    )
    run = _Run(
        config=config,
        store=store,
        accelerator=accelerator,
        loaded=loaded,
        parameters=parameters,
        optimizer=optimizer,
        pages=pages,
        variants=read_variants(dataset) if config.is_augmented else {},
        identity=identity,
        attempt=_attempt(),
        batch_size=batch_size,
        peak_learning_rate=float(config.arm["learning_rate"]),
        warmup_percent=float(config.arm.get("warmup_percent", config.trainer.warmup_percent)),
        row_tokens=MICRO_BATCH_TOKENS[loaded.device.type],
    )

    # Take up where the checkpoint ends, or measure the untrained model, by which divergence is told.
    if checkpoint is not None:
        restore(checkpoint, parameters, optimizer)
        run.step, run.started_at_step = checkpoint.state.step, checkpoint.state.step
        run.samples_seen = checkpoint.state.samples_seen
        run.untrained, run.losses = checkpoint.state.untrained, list(checkpoint.state.losses)
        # A rank whose rows were halved goes on with them: other rows round differently.
        run.row_tokens = checkpoint.state.row_tokens[accelerator.process_index]
        log.info("goes on from %s", checkpoint.key)
    else:
        run.untrained = run.measure_untrained()
    _print_derived(run)
    return run


def _refuse_impossible(config: TrialConfig, pages: Sequence[Page], batch_size: int) -> None:
    problems = []
    samples = count_samples(pages)
    if "learning_rate" not in config.arm:
        problems.append("TrialConfig.arm['learning_rate'] must be given")
    if not 0 < batch_size <= samples:
        problems.append(
            f"TrialConfig.arm['batch_size'] must be from 1 to the {samples} training samples, got {batch_size}"
        )
    if not 0 < config.stop_step <= config.total_steps:
        problems.append(
            f"TrialConfig.stop_step must be from 1 to total_steps {config.total_steps}, got {config.stop_step}"
        )
    if problems:
        raise StudyError("; ".join(problems))


def _newest_checkpoint(config: TrialConfig, store: ArtifactStore, identity: Identity) -> Checkpoint | None:
    """Return this run's newest whole checkpoint, of this rung or else of the earlier one.

    Where there is none the run begins at its first step: it costs time, and its result is the same to the bit.
    """
    found = find_checkpoint(store, identity)
    if found is None and config.resume_from is not None:
        found = find_checkpoint(open_store(config.resume_from), identity)
        if found is None:
            log.warning("%s has no whole checkpoint of this run, which begins at its first step", config.resume_from)
    return found


def _attempt() -> str:
    """Return this attempt's word. Only the first rank writes with it."""
    return (os.environ.get(ATTEMPT) or secrets.token_hex(4))[:8]


def _print_derived(run: _Run) -> None:
    samples = count_samples(run.pages)
    steps = samples // run.batch_size
    epochs = run.config.trainer.epochs
    trained = sum(parameter.numel() for parameter in run.parameters.values())
    log.info("samples: %d on %d pages; %d dropped an epoch", samples, len(run.pages), samples - steps * run.batch_size)
    log.info("steps: %d epochs x floor(%d / %d) = %d", epochs, samples, run.batch_size, run.config.total_steps)
    if run.untrained is not None:
        limit = exploded_loss(run.untrained, run.batch_size)
        log.info("untrained loss: %.3f; a run whose ten-step mean exceeds %.3f has diverged", run.untrained.mean, limit)
    log.info("trained parameters: %s", f"{trained:,}")
    log.info("threads: %d; ranks: %d", torch.get_num_threads(), run.accelerator.num_processes)


# --- The loss --------------------------------------------------------------------------------------------------------


def answer_loss(logits: Tensor, row: Row) -> Tensor:
    """Return the sum over a row's samples of the mean token cross-entropy of each answer, in nats.

    Args:
        logits: (labels, vocabulary), of any type; computed in fp32.
        row: tells which labels belong to which sample.
    """
    return _weigh(logits, row).sum()


def sample_losses(logits: Tensor, row: Row) -> Tensor:
    """Return the (samples,) mean token cross-entropy of each answer, in nats."""
    weighted = _weigh(logits, row)
    return weighted.new_zeros(row.samples).index_add_(0, row.sample_of_label, weighted)


def _weigh(logits: Tensor, row: Row) -> Tensor:
    losses = F.cross_entropy(logits.float(), row.labels, reduction="none")
    lengths = torch.bincount(row.sample_of_label, minlength=row.samples)
    return losses / lengths[row.sample_of_label]


def exploded_loss(untrained: UntrainedLoss, batch_size: int) -> float:
    """Return the ten-step mean of the loss above which a run has diverged."""
    error = untrained.deviation / math.sqrt(LOSS_WINDOW_STEPS * batch_size)
    above = max((EXPLODED_TIMES - 1) * untrained.mean, EXPLODED_NATS, EXPLODED_ERRORS * error)
    return untrained.mean + above


def has_unlearnt(
    losses: Sequence[float], untrained: UntrainedLoss, *, batch_size: int, questions_per_page: float
) -> bool:
    """Say whether the mean loss of some steps is above the untrained model's by more than chance makes of it.

    Questions of one page are hard together, so that both means know no more than they have pages.
    """
    if not losses:
        return False
    pages = [max(1.0, samples / questions_per_page) for samples in (len(losses) * batch_size, UNTRAINED_SAMPLES)]
    error = untrained.deviation * math.sqrt(sum(1 / count for count in pages))
    return sum(losses) / len(losses) > untrained.mean + UNLEARNT_ERRORS * error


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if platform.system() == "Darwin" else peak * 1024)


def versions() -> dict[str, str]:
    """Return what a measurement depends on besides its configuration."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "accelerate": accelerate.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
