"""A study small enough to train in seconds on one core: a random two-layer model, thirty pages, and its trials.

The trainer's processes are started as an operator would start them, and every one of them is gone when a test ends.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from builders.tiny_tokenizer import build_tokenizer, save_tokenizer
from trial_trainer.contract import (
    TRIAL_CONFIG,
    BaseModel,
    LabelSource,
    Precision,
    PrepareConfig,
    Split,
    TrainerSettings,
    TrialConfig,
    to_json,
)

ROOT = Path(__file__).resolve().parents[2]
ARM = {"learning_rate": 1e-3, "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1, "batch_size": 5}
PATIENCE_SECONDS = 300
"""How long a process may take before a test gives it up."""


def save_model(directory: Path) -> Path:
    """Write a random Llama of two layers with the tokenizer of bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    save_tokenizer(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def write_pages(path: Path, count: int = 30) -> Path:
    """Write product pages that say their name and price, each of a site of its own."""
    records = [
        {
            "id": f"p{number}",
            "url": f"https://shop{number}.example/kettle",
            "html": f"<html><body><h1>Kettle {number}</h1><p>Boils water, made of steel.</p>"
            f"<p>Price: ${number + 10}.50</p><button>Add to cart</button></body></html>",
            "labels": {},
            "markup": {"name": f"Kettle {number}", "price": f"{number + 10}.50"},
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def build_study(directory: Path) -> TrialConfig:
    """Write model and dataset; return a trial of 20 steps that runs to its end."""
    from trial_trainer.dataset.prepare import prepare

    model = BaseModel(uri=str(save_model(directory / "model")))
    prepare(
        PrepareConfig(
            study="s",
            source=str(write_pages(directory / "pages.jsonl")),
            attributes=("name", "price"),
            labels_from=LabelSource.MARKUP,
            split=Split(validation_percent=40, test_percent=0),
            seed=0,
            base_model=model,
            max_length_tokens=500,
            dataset=str(directory / "dataset"),
        )
    )
    return TrialConfig(
        study="s",
        trial="t000",
        rung=0,
        seed=0,
        arm=ARM,
        base_model=model,
        dataset=str(directory / "dataset"),
        output=str(directory / "never"),
        total_steps=20,
        stop_step=20,
        trainer=TrainerSettings(epochs=4, max_length_tokens=500, precision=Precision.FLOAT32),
    )


def with_processes(config: TrialConfig, processes: int) -> TrialConfig:
    return replace(config, trainer=replace(config.trainer, processes=processes))


class Trainer:
    """One `python -m trial_trainer` and all that it started."""

    def __init__(self, config: TrialConfig | str, arguments: Sequence[str] = (), **environment: str) -> None:
        text = config if isinstance(config, str) else to_json(config)
        # A word of its own in the environment finds every process that it started.
        self.mark = f"TINY_STUDY_MARK={os.urandom(8).hex()}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trial_trainer", *arguments],
            env=clean_environment() | {TRIAL_CONFIG: text, name: value} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> "Ended":
        """Wait for the end, whatever it is."""
        try:
            output, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            for process in self.processes():
                os.kill(process, 9)
            self.process.kill()
            raise
        return Ended(self.process.returncode, output, errors, self.processes())

    def processes(self) -> list[int]:
        """Return the processes that are alive and descend from this one, and it itself."""
        return find_processes(self.mark)

    def ranks(self) -> list[int]:
        """Return the processes that train, where there are several."""
        return [process for process in self.processes() if b"\0RANK=" in read_environment(process)]


class Ended:
    """How a trainer ended."""

    def __init__(self, code: int, output: str, errors: str, orphans: list[int]) -> None:
        self.code, self.output, self.errors, self.orphans = code, output, errors, orphans

    def __repr__(self) -> str:
        return f"Ended({self.code}, left_behind={self.orphans}, errors={self.errors[-3000:]!r})"


def clean_environment() -> dict[str, str]:
    paths = [str(ROOT / "trainer"), str(ROOT / "tests")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def find_processes(mark: str) -> list[int]:
    numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [number for number in numbers if f"{mark}\0".encode() in read_environment(number) + b"\0"]


def read_environment(process: int) -> bytes:
    """Return the environment that a process was started with; empty for one that is gone or a zombie."""
    try:
        return b"\0" + Path(f"/proc/{process}/environ").read_bytes()
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return b""


def wait_until(condition: Callable[[], Any]) -> Any:
    """Return what the condition finds, once it finds something."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise TimeoutError("what was waited for did not happen")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
