"""What the benchmarks of training and evaluation share: the laptop sample's data, its arm, and one step of ours."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Before any library looks for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from trial_trainer.artifacts import open_store
from trial_trainer.contract import (
    BaseModel,
    LabelSource,
    ParameterValue,
    Precision,
    PrepareConfig,
    Split,
    TrainerSettings,
)
from trial_trainer.dataset.prepare import prepare
from trial_trainer.dataset.store import DatasetIndex, Page, read_index, read_split
from trial_trainer.model.load import LoadedModel, adapter_parameters, add_adapter, load_base
from trial_trainer.model.rows import MICRO_BATCH_TOKENS, Group, build_row, micro_batches
from trial_trainer.training.schedule import learning_rate
from trial_trainer.training.train import MAX_GRADIENT_NORM, answer_loss

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "manifests" / "samples" / "data"
MODEL = ROOT / ".cache" / "smollm2-135m-instruct"
DATASET = ROOT / "runs" / "benchmarks" / "dataset"
ATTRIBUTES = ("name", "price", "currency", "brand", "sku", "availability", "rating")
ARM: dict[str, ParameterValue] = {
    "learning_rate": 1e-3,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "batch_size": 8,
}
MAX_LENGTH_TOKENS = 512
CPU = torch.device("cpu")


def settings(precision: Precision = Precision.BFLOAT16) -> TrainerSettings:
    """Return what the laptop sample sets for every arm."""
    return TrainerSettings(epochs=3, max_length_tokens=MAX_LENGTH_TOKENS, precision=precision)


def base_model() -> BaseModel:
    """Return where the sample's base model lies."""
    return BaseModel(uri=str(MODEL))


def read_demo(split: str) -> tuple[Page, ...]:
    """Read one split of the laptop sample's dataset, prepared when it is not there."""
    if not (DATASET / "summary.json").exists():
        _prepare()
    return read_split(open_store(str(DATASET)), split)


def read_demo_index() -> DatasetIndex:
    """Read how the token ids of the laptop sample's dataset were made."""
    return read_index(open_store(str(DATASET)))


def _prepare() -> None:
    prepare(
        PrepareConfig(
            study="benchmark",
            source=str(DATA / "wcxb-product-pages" / "pages.jsonl.gz"),
            test_source=str(DATA / "zyte-product-pages" / "pages.jsonl.gz"),
            attributes=ATTRIBUTES,
            labels_from=LabelSource.MARKUP,
            split=Split(validation_percent=35, test_percent=0),
            seed=0,
            base_model=base_model(),
            max_length_tokens=MAX_LENGTH_TOKENS,
            dataset=str(DATASET),
        )
    )


def sample_tokens(groups: Sequence[Group]) -> int:
    """Count the tokens of samples that each hold their whole page, the end of turn included, without padding."""
    return sum(len(g.page.prefix) + len(q.prompt) + len(q.answer) for g in groups for q in g.questions)


@dataclass(kw_only=True)
class OurTrainer:
    """The optimizer step of `trial_trainer.training.train`, on groups of any making."""

    loaded: LoadedModel
    optimizer: torch.optim.Optimizer
    total_steps: int
    learning_rate: float
    taken: int = 0

    def step(self, groups: Sequence[Group]) -> float:
        """Take one optimizer step on a batch and return its loss."""
        total = 0.0
        self.loaded.set_training(True)
        samples = sum(len(group.questions) for group in groups)
        for batch in micro_batches(groups, MICRO_BATCH_TOKENS["cpu"]):
            row = build_row(batch, CPU, str(self.taken))
            loss = answer_loss(self.loaded.logits(row), row) / samples
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        rate = learning_rate(self.taken, peak=self.learning_rate, total_steps=self.total_steps, warmup_percent=10)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.taken += 1
        return total

    @property
    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        return iter(adapter_parameters(self.loaded.module).values())


def build_ours(
    page: Page, *, total_steps: int, seed: int = 0, learning_rate: float = float(ARM["learning_rate"])
) -> OurTrainer:
    """Load the base model with a fresh adapter.

    Args:
        page: any page with questions, to check the model's attention with.
        total_steps: length of the learning rate's schedule.
        seed: of the adapter's weights.
        learning_rate: the highest of the schedule.
    """
    loaded = add_adapter(load_base(base_model(), settings(), CPU, page), ARM, settings(), seed)
    optimizer = torch.optim.AdamW(list(adapter_parameters(loaded.module).values()), lr=0.0, weight_decay=0.0)
    return OurTrainer(loaded=loaded, optimizer=optimizer, total_steps=total_steps, learning_rate=learning_rate)


def median(seconds: Sequence[float]) -> float:
    """Return the middle of some measured times."""
    return statistics.median(seconds)
