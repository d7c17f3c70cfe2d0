"""Training speed beside TRL's `SFTTrainer`: the same arm, base model, samples and processor, step by step in turns.

    PYTHONPATH=trainer python benchmarks/training.py                  # tokens/s and samples/s, a few minutes
    PYTHONPATH=trainer python benchmarks/training.py --to-equal-loss  # time to one validation loss, three seeds
    PYTHONPATH=trainer python benchmarks/training.py --profile        # one step of ours by operator

TRL gets the bf16 base model under autocast, loss on answers only, no gradient checkpointing, the samples of each step
sorted by length, and the faster of the given micro-batches. Both sides' tokens are those of separate samples, padding
left out, so that a ratio of tokens/s is a ratio of times. Only the optimizer step is timed: no loading, no collating.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import _demo
from _demo import ARM, CPU, MODEL, OurTrainer, build_ours, median, sample_tokens
from trial_trainer.dataset.store import TEST, TRAIN, VALIDATION, Page, count_samples
from trial_trainer.model.load import adapter_parameters
from trial_trainer.model.rows import Group, build_row, micro_batches, separate, step_groups
from trial_trainer.training.schedule import learning_rate
from trial_trainer.training.train import answer_loss

QUESTIONS_A_PAGE = 7
BATCH = int(ARM["batch_size"])
WHOLE_PAGES = 2 * QUESTIONS_A_PAGE
WARMUP_PERCENT = 10
ROWS = ("separate", "shared", "whole")


def main() -> None:
    """Measure what the arguments ask for and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="measured steps a row, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--micro-batches",
        type=int,
        nargs="+",
        default=[1, 2, 8],
        choices=[1, 2, 4, 8],
        help="TRL's samples a forward pass",
    )
    parser.add_argument("--no-autocast", action="store_true", help="TRL without autocast: its adapters compute in fp32")
    parser.add_argument("--to-equal-loss", action="store_true", help="time to equal validation loss instead")
    parser.add_argument("--loss-steps", type=int, default=8, help="TRL's optimizer steps on the way to that loss")
    parser.add_argument("--loss-pages", type=int, default=12, help="validation pages that the loss is read on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, help="rows of the table of speeds")
    parser.add_argument("--profile", action="store_true", help="profile one step of ours instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if arguments.to_equal_loss:
        print_time_to_equal_loss(arguments.loss_steps, arguments.loss_pages, arguments.seeds, not arguments.no_autocast)
    elif arguments.profile:
        print_profile()
    else:
        print_speed(arguments.steps, arguments.micro_batches, arguments.rows, not arguments.no_autocast)


# --- Speed, step by step ---------------------------------------------------------------------------------------------


def print_speed(steps: int, sizes: Sequence[int], rows: Sequence[str], autocast: bool) -> None:
    """Print tokens/s on separate samples, and samples/s where seven questions share their page."""
    pages = _demo.read_demo(TRAIN)
    seven = pages_with_seven_questions(_demo.read_demo(TEST), 8)
    ours = build_ours(max(pages, key=lambda page: len(page.questions)), total_steps=1000)
    theirs = TrlTrainer(total_steps=1000, autocast=autocast)
    # What is loaded at the first call counts for nobody.
    theirs.step(separate(step_groups(pages, step=0, batch_size=BATCH, seed=0))[:1], 1)

    how = "with" if autocast else "without"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, TRL {how} autocast,")
    print(f"medians of {steps} steps in turns\n")
    print("| data | ours | TRL | TRL's micro-batch | ratio |")
    print("|---|---|---|---|---|")
    table = (
        _Setting(name="separate samples", pages=pages, batch=BATCH, arrange=separate, unit="tokens/s"),
        _Setting(name=f"pages of {QUESTIONS_A_PAGE} questions, shared, batch {BATCH}", pages=seven, batch=BATCH),
        _Setting(name=f"the same, batch {WHOLE_PAGES}: whole pages", pages=seven, batch=WHOLE_PAGES),
    )
    for setting in (setting for row, setting in zip(ROWS, table, strict=True) if row in rows):
        fitting = [size for size in sizes if setting.batch % size == 0] or [QUESTIONS_A_PAGE]
        best = print_row(setting, ours, theirs, steps, fitting)
        # Settled by the first row, for the others too.
        sizes = [best] if best in sizes else sizes


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """One row of the table: whose samples, how many a step, and how ours lays them out."""

    name: str
    pages: Sequence[Page]
    batch: int
    arrange: Callable[[Sequence[Group]], list[Group]] = list
    unit: str = "samples/s"

    def groups(self, step: int) -> list[Group]:
        """Return the samples of a step, the same for both sides."""
        steps = count_samples(self.pages) // self.batch
        return step_groups(self.pages, step=step % steps, batch_size=self.batch, seed=0)

    def amount(self, groups: Sequence[Group]) -> int:
        """Return what is counted in a step."""
        return sample_tokens(groups) if self.unit == "tokens/s" else self.batch


def print_row(setting: _Setting, ours: OurTrainer, theirs: TrlTrainer, steps: int, sizes: Sequence[int]) -> int:
    """Print one row of the table and return TRL's best micro-batch, which the step that warms up settles."""
    warm = setting.groups(0)
    ours.step(setting.arrange(warm))
    seconds = {size: theirs.step(warm, size) for size in sizes}
    best = min(sizes, key=lambda size: seconds[size])
    of_ours: list[float] = []
    of_theirs: list[float] = []
    for step in range(1, steps + 1):
        groups = setting.groups(step)
        arranged = setting.arrange(groups)
        of_ours.append(setting.amount(groups) / timed(lambda arranged=arranged: ours.step(arranged)))
        of_theirs.append(setting.amount(groups) / theirs.step(groups, best))
    a, b = median(of_ours), median(of_theirs)
    print(f"| {setting.name} | {a:.2f} {setting.unit} | {b:.2f} {setting.unit} | {best} | {a / b:.2f}x |", flush=True)
    return best


def pages_with_seven_questions(pages: Sequence[Page], limit: int) -> list[Page]:
    """Return pages with exactly seven questions; those that ask fewer ask some again."""
    found = []
    for page in sorted(pages, key=lambda page: -len(page.questions))[:limit]:
        questions = (page.questions * QUESTIONS_A_PAGE)[:QUESTIONS_A_PAGE]
        found.append(Page(id=page.id, site=page.site, url=page.url, prefix=page.prefix, questions=questions))
    return found


def timed(work: Callable[[], None]) -> float:
    """Return the wall seconds of some work."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class TrlTrainer:
    """TRL's trainer, asked for one optimizer step at a time."""

    def __init__(self, *, total_steps: int, seed: int = 0, autocast: bool = True) -> None:
        import transformers
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
        from trl import SFTConfig, SFTTrainer

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._total_steps, self._taken, self.seconds = total_steps, 0, 0.0
        watch = self

        class Stopwatch(TrainerCallback):  # type: ignore[misc]
            """Times the optimizer step, without loading and collating."""

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.start = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                watch.seconds += time.perf_counter() - self.start

        torch.manual_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16, local_files_only=True)
        self._trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=_dataset([((0, 1), (2,))]),
            args=SFTConfig(
                output_dir=tempfile.mkdtemp(prefix="trl-"),
                use_cpu=True,
                bf16=autocast,
                max_steps=1,
                completion_only_loss=True,
                gradient_checkpointing=False,
                packing=False,
                max_length=None,
                learning_rate=float(ARM["learning_rate"]),
                lr_scheduler_type="constant",
                max_grad_norm=1.0,
                train_sampling_strategy="sequential",
                dataloader_pin_memory=False,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                seed=seed,
            ),
            peft_config=LoraConfig(
                r=int(ARM["lora_rank"]),
                lora_alpha=float(ARM["lora_alpha"]),
                lora_dropout=float(ARM["lora_dropout"]),
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[Stopwatch()],
        )
        self._trainer.remove_callback(PrinterCallback)

    def step(self, groups: Sequence[Group], micro_batch: int) -> float:
        """Take one optimizer step on a batch of separate samples; return its seconds."""
        samples = [((*g.page.prefix, *q.prompt), q.answer) for g in groups for q in g.questions]
        samples.sort(key=lambda sample: len(sample[0]) + len(sample[1]))
        arguments = self._trainer.args
        arguments.per_device_train_batch_size = micro_batch
        arguments.gradient_accumulation_steps = len(samples) // micro_batch
        self._trainer._train_batch_size = micro_batch
        self._trainer.train_dataset = _dataset(samples)
        arguments.learning_rate = learning_rate(
            self._taken,
            peak=float(ARM["learning_rate"]),
            total_steps=self._total_steps,
            warmup_percent=WARMUP_PERCENT,
        )
        if self._trainer.optimizer is not None:
            for group in self._trainer.optimizer.param_groups:
                group["lr"] = group["initial_lr"] = arguments.learning_rate
        self._trainer.lr_scheduler = None
        self.seconds = 0.0
        self._trainer.train()
        self._taken += 1
        return self.seconds

    def adapter(self) -> dict[str, torch.Tensor]:
        """Return the adapter's weights by name."""
        return {name: parameter.detach() for name, parameter in adapter_parameters(self._trainer.model).items()}


def _dataset(samples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [{"input_ids": [*prompt, *answer], "labels": [-100] * len(prompt) + list(answer)} for prompt, answer in samples]
    )


# --- Time to equal validation loss -----------------------------------------------------------------------------------


def print_time_to_equal_loss(steps: int, pages_read: int, seeds: Sequence[int], autocast: bool) -> None:
    """Print the training time in which each side first reaches TRL's last validation loss.

    TRL trains ``steps`` batches of separate samples in random order, under the whole schedule of that length. Ours
    takes pages in its own order, at most four times as many steps, under a schedule of that length, and is read every
    other step. The seed draws the order and the adapter. Reading the loss does not count.
    """
    pages = _demo.read_demo(TRAIN)
    validation = [page for page in _demo.read_demo(VALIDATION) if page.questions][:pages_read]
    print(f"{count_samples(validation)} validation samples, {steps} steps of TRL\n")
    print("| seed | loss | TRL, s | ours, s | ours, steps | ratio |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for seed in seeds:
        ours = build_ours(max(pages, key=lambda page: len(page.questions)), total_steps=4 * steps, seed=seed)
        theirs = TrlTrainer(total_steps=steps, seed=seed, autocast=autocast)
        samples = separate([Group(page=page, questions=page.questions) for page in pages])
        random.Random(seed).shuffle(samples)
        # The faster micro-batch in the speed table.
        their_seconds = sum(theirs.step(samples[i * BATCH : (i + 1) * BATCH], 2) for i in range(steps))
        untrained = _copy_of_adapter(ours)
        _set_adapter(ours, theirs.adapter())
        goal = validation_loss(ours, validation)
        _set_adapter(ours, untrained)
        our_seconds, loss = 0.0, float("inf")
        while loss > goal and ours.taken < 4 * steps:
            step = ours.taken % (count_samples(pages) // BATCH)
            groups = step_groups(pages, step=step, batch_size=BATCH, seed=seed)
            our_seconds += timed(lambda groups=groups, ours=ours: ours.step(groups))
            if ours.taken % 2 == 0:
                loss = validation_loss(ours, validation)
        if loss > goal:
            print(
                f"| {seed} | {goal:.4f} | {their_seconds:.1f} | not reached: {loss:.4f} after {our_seconds:.1f} | | |"
            )
            continue
        ratios.append(their_seconds / our_seconds)
        print(
            f"| {seed} | {goal:.4f} | {their_seconds:.1f} | {our_seconds:.1f} | {ours.taken} | {ratios[-1]:.2f}x |",
            flush=True,
        )
    if ratios:
        print(f"| median | | | | | {median(ratios):.2f}x |")


@torch.no_grad()
def validation_loss(ours: OurTrainer, pages: Sequence[Page]) -> float:
    """Return the mean over samples of the mean token cross-entropy of the answer, in nats."""
    ours.loaded.module.eval()
    groups = [Group(page=page, questions=tuple(q for q in page.questions if q.derived)) for page in pages]
    groups = [group for group in groups if group.questions]
    total = 0.0
    for batch in micro_batches(groups, 2048):
        row = build_row(batch, CPU)
        total += float(answer_loss(ours.loaded.logits(row), row))
    return total / sum(len(group.questions) for group in groups)


def _copy_of_adapter(ours: OurTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in adapter_parameters(ours.loaded.module).items()}


@torch.no_grad()
def _set_adapter(ours: OurTrainer, weights: dict[str, torch.Tensor]) -> None:
    parameters = adapter_parameters(ours.loaded.module)
    if parameters.keys() != weights.keys():
        raise ValueError("both sides must train the same weights")
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


# --- Profile ---------------------------------------------------------------------------------------------------------


def print_profile() -> None:
    """Print where the processor's time goes in one step of ours, whole pages of seven questions."""
    from torch.profiler import ProfilerActivity, profile

    seven = pages_with_seven_questions(_demo.read_demo(TEST), 8)
    ours = build_ours(seven[0], total_steps=1000)
    ours.step(step_groups(seven, step=0, batch_size=WHOLE_PAGES, seed=0))
    groups = step_groups(seven, step=1, batch_size=WHOLE_PAGES, seed=0)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        ours.step(groups)
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"one step of {WHOLE_PAGES} samples on two pages: {total / 1e6:.2f} s\n")
    print("| operator | calls | ms | share |")
    print("|---|---|---|---|")
    for event in events[:15]:
        milliseconds = event.self_cpu_time_total / 1e3
        share = 100 * event.self_cpu_time_total / total
        print(f"| {event.key} | {event.count} | {milliseconds:.0f} | {share:.1f} % |")
    rest = sum(event.self_cpu_time_total for event in events[15:])
    print(f"| the rest | | {rest / 1e3:.0f} | {100 * rest / total:.1f} % |")


if __name__ == "__main__":
    main()
