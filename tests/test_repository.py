"""What the repository itself promises: pinned requirements, sample pages in one schema, a base model that can chat."""

import gzip
import json
import re
import runpy
import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = REPOSITORY / "requirements"
SAMPLES = REPOSITORY / "manifests/samples"
MODEL = REPOSITORY / ".cache/smollm2-135m-instruct"
ATTRIBUTES = {"name", "price", "currency", "brand", "sku", "availability", "rating", "description"}
LOCKS = sorted(REQUIREMENTS.glob("*.txt"))


def read_pages(name: str) -> list[dict[str, Any]]:
    with gzip.open(SAMPLES / "data" / name / "pages.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_the_requirement_files_that_the_makefile_installs_are_there() -> None:
    expected = {"trainer", "operator", "torch", "image", "test", "bench", "model", "uv"}
    assert {path.stem for path in LOCKS} == expected


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_requirement_is_pinned_with_a_hash_and_no_registry_is_named(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "index-url" not in text
    pins = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert pins
    for pin in pins:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z0-9,-]+\])?==", pin), pin
        assert "--hash=sha256:" in pin, pin


@pytest.mark.parametrize("half", ["trainer", "operator", "torch"])
def test_each_half_is_pinned_as_the_working_copy_is(half: str) -> None:
    pins = {line for line in (REQUIREMENTS / f"{half}.txt").read_text().splitlines() if "==" in line}
    tested = {line for line in (REQUIREMENTS / "test.txt").read_text().splitlines() if "==" in line}
    # The working copy may need an extra of the same package, or need it on one platform more.
    assert {re.split(r"[\[ ;\\]", pin)[0] for pin in pins if "[" not in pin} <= {
        re.sub(r"\[.*?\]", "", pin).split(" ")[0] for pin in tested
    }


def test_tests_reach_nothing_but_this_machine() -> None:
    # 192.0.2.0/24 is documentation's own network (RFC 5737).
    with pytest.raises(OSError, match=r"must stay on this machine, got a connection to '192\.0\.2\.1'"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_a_wheel_holds_every_file_of_the_packages() -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    ours = {"study_operator": REPOSITORY / "operator", "trial_trainer": REPOSITORY / "trainer"}
    files = {
        name: sorted(
            str(path.relative_to(folder / name))
            for path in (folder / name).rglob("*")
            if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
        )
        for name, folder in ours.items()
    }
    assert {name: found for name, found in files.items() if found} == declared


@pytest.mark.parametrize("folder", ["operator", "trainer"])
def test_the_folders_on_the_path_are_no_packages(folder: str) -> None:
    assert not (REPOSITORY / folder / "__init__.py").exists()


@pytest.mark.parametrize(
    ("name", "pages", "sites"),
    [("wcxb-product-pages", 118, 82), ("zyte-product-pages", 140, 60)],
    ids=["training pages", "test pages"],
)
def test_sample_pages_keep_one_schema(name: str, pages: int, sites: int) -> None:
    rows = read_pages(name)
    assert len(rows) == len({row["id"] for row in rows}) == pages
    assert len({row["site"] for row in rows}) == sites
    for row in rows:
        assert set(row) == {"id", "site", "url", "html", "labels", "markup"}
        assert row["html"]
        assert set(row["markup"]) <= ATTRIBUTES
        assert all(isinstance(value, str) and value.strip() for value in row["markup"].values())
        assert set(row["labels"]) <= ATTRIBUTES | {"mpn", "gtin"}
        for accepted in row["labels"].values():
            assert accepted
            assert all(isinstance(value, str) and value.strip() for value in accepted)


def test_the_test_pages_carry_no_label_that_no_person_made() -> None:
    by_hand = {"price", "currency", "availability", "sku", "brand", "mpn", "gtin"}
    assert {attribute for row in read_pages("zyte-product-pages") for attribute in row["labels"]} == by_hand


@pytest.mark.parametrize("name", ["wcxb-product-pages", "zyte-product-pages"])
def test_sample_pages_come_with_licence_credit_and_changes(name: str) -> None:
    readme = (SAMPLES / "data" / name / "README.md").read_text()
    assert all(word in readme for word in ("**Source and credit.**", "**Licence.**", "**Changes made.**"))
    assert (SAMPLES / "data" / name / "LICENSE").read_text().strip()


def test_the_conversion_leaves_a_model_alone_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert = runpy.run_path(str(SAMPLES / "base_model.py"))["main"]
    (tmp_path / "model").mkdir()
    assert convert([str(tmp_path / "no-package"), str(tmp_path / "model")]) == 0
    assert list((tmp_path / "model").iterdir()) == []
    assert "is there" in capsys.readouterr().out


def test_the_conversion_names_the_file_it_misses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert = runpy.run_path(str(SAMPLES / "base_model.py"))["main"]
    assert convert([str(tmp_path / "no-package"), str(tmp_path / "model")]) == 1
    assert "SmolLM2-135M-Instruct.Q4_1.gguf must exist; run `make model`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_base_model_ends_its_turns_and_is_no_longer_quantised() -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    config = AutoConfig.from_pretrained(MODEL)
    assert config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert config.tie_word_embeddings
    assert not hasattr(config, "quantization_config")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "119,01 €"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert tokenizer.decode(ids).endswith("<|im_start|>user\n119,01 €<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.slow
def test_the_base_model_knows_a_capital() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert model.dtype == torch.bfloat16
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    message = tokenizer.decode(answer)
    assert "Paris" in message
    assert message.endswith("<|im_end|>")


DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
FOLDERS = {path.name for path in REPOSITORY.iterdir() if path.is_dir() and path.name not in {".git", ".cache", ".venv"}}


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_every_path_and_link_of_a_document_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = [path for path in re.findall(r"`([\w.]+/[\w./*-]+)`", text) if path.split("/")[0] in FOLDERS]
    missing = [path for path in named if not any(REPOSITORY.glob(path))]
    for target, anchor in re.findall(r"(?<!`)\[[^\]\n]*(?:\n[^\]\n]*)?\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        goal = (page.parent / target) if target else page
        if not goal.exists() or (anchor and goal.suffix == ".md" and anchor not in anchors_of(goal)):
            missing.append(f"{target}#{anchor}")
    assert missing == []


def test_every_page_is_in_the_index() -> None:
    index = (REPOSITORY / "docs/README.md").read_text()
    pages = {path.name for path in REPOSITORY.glob("docs/*.md")} - {"README.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)", index)) == pages


@pytest.mark.parametrize("half", ["operator/study_operator", "trainer/trial_trainer"])
def test_tests_mirror_the_packages(half: str) -> None:
    tests = REPOSITORY / "tests" / half.split("/", maxsplit=1)[0]
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    packages = {path.parent.relative_to(REPOSITORY / half) for path in (REPOSITORY / half).rglob("__init__.py")}
    assert folders <= packages
