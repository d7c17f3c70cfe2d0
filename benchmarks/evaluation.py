"""Answering speed beside transformers' batched `generate`: the same model, questions and greedy strings, in turns.

    PYTHONPATH=trainer python benchmarks/evaluation.py                     # trains an adapter for the second table
    PYTHONPATH=trainer python benchmarks/evaluation.py --adapter FOLDER    # with one that is there

The pages are the first of the test set, which asks up to seven questions of each and is what the goals are for, and the
first of the validation set, which asks about four. `generate` gets left-padded batches of questions sorted by length, a
key-value cache, and the fastest of the given batch sizes. The adapter stays beside its base model on both sides, as a
merged one rounds differently; merging is a row of its own. Strings may differ in bf16 where the two best logits are
nearly equal; in fp32 none may.
"""

from __future__ import annotations

import argparse
import copy
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import _demo
from _demo import ARM, CPU, MODEL, build_ours, median
from trial_trainer.base_model import load_tokenizer
from trial_trainer.contract import Precision
from trial_trainer.dataset.store import TEST, TRAIN, VALIDATION, DatasetIndex, Page, count_samples
from trial_trainer.evaluation.decode import answer_pages
from trial_trainer.model.load import LoadedModel, load_adapter, load_base
from trial_trainer.model.rows import step_groups

TYPES = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT32: torch.float32}

Answers = list[tuple[int, ...]]


def main() -> None:
    """Measure both models and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", nargs="+", default=[TEST, VALIDATION], choices=[TEST, VALIDATION])
    parser.add_argument("--pages", type=int, default=10, help="pages of each split that are answered in bf16")
    parser.add_argument("--exact-pages", type=int, default=3, help="pages that are compared in fp32")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32], help="batch sizes of generate")
    parser.add_argument("--rounds", type=int, default=2, help="times that the best size and ours are measured in turns")
    parser.add_argument("--train-steps", type=int, default=15)
    parser.add_argument("--adapter", help="folder of a trained adapter, instead of training one")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)

    index = _demo.read_demo_index()
    with tempfile.TemporaryDirectory() as folder:
        adapter = arguments.adapter or train_adapter(arguments.train_steps, Path(folder))
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; at most ", end="")
        print(f"{index.longest_answer_tokens} tokens an answer")
        for split in arguments.splits:
            pages = read_pages(split)[: arguments.pages]
            print(f"\n{count_samples(pages)} questions of {len(pages)} pages of the {split} set in bf16\n")
            print("| model | answered by | batch | seconds | questions/s | ours is | strings that differ |")
            print("|---|---|---|---|---|---|---|")
            for name, uri in (("untrained", None), ("trained", adapter)):
                compare_speed(name, uri, pages, index, arguments.sizes, arguments.rounds)
        few = read_pages(arguments.splits[-1])[: arguments.exact_pages]
        print(f"\n{count_samples(few)} questions of {len(few)} pages in fp32\n")
        print("| model | strings that differ |")
        print("|---|---|")
        for name, uri in (("untrained", None), ("trained", adapter)):
            ours, theirs = load_both(uri, few[0], Precision.FLOAT32)
            differing = count_differing(ours_on(ours, few, index), theirs_on(theirs, few, index, min(arguments.sizes)))
            print(f"| {name} | {differing} |", flush=True)


def read_pages(split: str) -> list[Page]:
    """Read the pages of a split that are asked about."""
    return [page for page in _demo.read_demo(split) if page.questions]


def train_adapter(steps: int, folder: Path) -> str:
    """Train the sample's arm for some steps and save its adapter."""
    pages = _demo.read_demo(TRAIN)
    ours = build_ours(max(pages, key=lambda page: len(page.questions)), total_steps=steps)
    for step in range(steps):
        ours.step(step_groups(pages, step=step, batch_size=int(ARM["batch_size"]), seed=0))
    ours.loaded.module.save_pretrained(str(folder))  # type: ignore[operator]
    return str(folder)


def compare_speed(
    name: str, adapter: str | None, pages: Sequence[Page], index: DatasetIndex, sizes: Sequence[int], rounds: int
) -> None:
    """Print the rows of one model: ours, each batch size of `generate`, and the best one with a merged adapter."""
    ours, theirs = load_both(adapter, pages[0], Precision.BFLOAT16)
    # Both sides warm up on a page.
    ours_on(ours, pages[:1], index)
    theirs_on(theirs, pages[:1], index, max(sizes))

    our_seconds: list[float] = []
    their_seconds: dict[int, list[float]] = {size: [] for size in sizes}
    differing: dict[int, int] = {}

    def take_turns(size: int) -> None:
        mine, seconds = timed(lambda: ours_on(ours, pages, index))
        our_seconds.append(seconds)
        others, seconds = timed(lambda: theirs_on(theirs, pages, index, size))
        their_seconds[size].append(seconds)
        differing[size] = count_differing(mine, others)

    for size in sizes:
        take_turns(size)
    best = min(sizes, key=lambda size: median(their_seconds[size]))
    for _ in range(rounds - 1):
        take_turns(best)

    mine, questions = median(our_seconds), count_samples(pages)
    print(f"| {name} | ours | | {mine:.1f} | {questions / mine:.2f} | | |")

    def print_theirs(row: str, size: int, seconds: float, count: int) -> None:
        ratio = f"{questions / seconds:.2f} | {seconds / mine:.2f}x"
        print(f"| {name} | {row} | {size} | {seconds:.1f} | {ratio} | {count} |", flush=True)

    for size in sizes:
        row = "generate, its best" if size == best else "generate"
        print_theirs(row, size, median(their_seconds[size]), differing[size])
    if adapter is not None:
        merged = theirs.merge_and_unload()
        others, seconds = timed(lambda: theirs_on(merged, pages, index, best))
        print_theirs("generate, merged", best, seconds, count_differing(ours_on(ours, pages, index), others))


def load_both(adapter: str | None, page: Page, precision: Precision) -> tuple[LoadedModel, Any]:
    """Load the model twice: as ours, and as transformers and PEFT have it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ours = load_base(_demo.base_model(), _demo.settings(precision), CPU, page)
    theirs: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=TYPES[precision], local_files_only=True)
    if adapter is not None:
        with tempfile.TemporaryDirectory() as folder:
            ours = load_adapter(ours, adapter, Path(folder))
        theirs = PeftModel.from_pretrained(theirs, adapter)
    return ours, theirs.eval()


def ours_on(loaded: LoadedModel, pages: Sequence[Page], index: DatasetIndex) -> Answers:
    """Answer every question by `answer_pages`."""
    return [answered.tokens for answered in answer_pages(loaded, pages, index)]


@torch.no_grad()
def theirs_on(model: Any, pages: Sequence[Page], index: DatasetIndex, batch_size: int) -> Answers:
    """Answer every question by `generate`, in batches of prompts of about one length."""
    prompts = [(*page.prefix, *question.prompt) for page in pages for question in page.questions]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    settings = copy.deepcopy(model.generation_config)
    settings.update(
        do_sample=False,
        max_new_tokens=index.longest_answer_tokens,
        eos_token_id=list(index.end_of_turn),
        pad_token_id=index.end_of_turn[0],
        use_cache=True,
    )
    answers: Answers = [()] * len(prompts)
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        longest = max(len(prompts[number]) for number in numbers)
        padding = [longest - len(prompts[number]) for number in numbers]
        ids = [[index.end_of_turn[0]] * p + list(prompts[n]) for p, n in zip(padding, numbers, strict=True)]
        mask = [[0] * p + [1] * (longest - p) for p in padding]
        written = model.generate(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), generation_config=settings
        )
        for number, tokens in zip(numbers, written[:, longest:].tolist(), strict=True):
            end = next((i for i, token in enumerate(tokens) if token in index.end_of_turn), len(tokens))
            answers[number] = tuple(tokens[:end])
    return answers


def count_differing(ours: Answers, theirs: Answers) -> int:
    """Count the questions that are answered by different strings."""
    tokenizer = load_tokenizer(_demo.base_model())
    pairs = zip(ours, theirs, strict=True)
    return sum(tokenizer.decode(list(a)) != tokenizer.decode(list(b)) for a, b in pairs)


def timed(work: Callable[[], Answers]) -> tuple[Answers, float]:
    """Do some work and return its answers with their wall seconds."""
    start = time.perf_counter()
    answers = work()
    return answers, time.perf_counter() - start


if __name__ == "__main__":
    main()
