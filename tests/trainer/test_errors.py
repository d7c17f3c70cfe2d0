"""One tree of errors: each is drawn where the tree is, says a reason of its own, and knows whose fault it was."""

import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest

import trial_trainer
from trial_trainer import artifacts, contract, errors
from trial_trainer.errors import TrainerError

EXIT_CODES = {
    "TrainerError": 1,
    "Diverged": 10,
    "ArmError": 11,
    "StudyError": 12,
    "BaseModelError": 12,
    "DatasetError": 12,
    "PrepareError": 12,
    "PromptError": 12,
    "TeacherError": 12,
    "TeacherUnavailableError": 1,
    "UnsupportedAttentionError": 1,
}


def subclasses(root: type[TrainerError]) -> Iterator[type[TrainerError]]:
    yield root
    for inner in root.__subclasses__():
        yield from subclasses(inner)


def test_every_error_is_drawn_below_the_one_that_it_is_a_kind_of() -> None:
    drawn = [
        (len(found[1]) // 4, found[2])
        for line in str(errors.__doc__).splitlines()
        if (found := re.match(r"    ((?:│   |    )*(?:├── |└── )?)([A-Z]\w+)", line))
    ]
    path: list[str] = []
    for depth, name in drawn:
        path[depth:] = [name]
        error = getattr(errors, name)
        assert error.__base__.__name__ == (path[depth - 1] if depth else "Exception")
    assert sorted(name for _, name in drawn) == sorted(error.__name__ for error in subclasses(TrainerError))


@pytest.mark.parametrize("error", list(subclasses(TrainerError)), ids=lambda error: error.__name__)
def test_every_error_knows_whose_fault_it_was(error: type[TrainerError]) -> None:
    assert error.exit_code == EXIT_CODES[error.__name__]


def test_every_error_has_a_reason_of_its_own() -> None:
    every = [*subclasses(TrainerError), contract.ContractError]
    reasons = [error.reason for error in every] + [artifacts.ArtifactError("it is away").reason]
    assert all(re.fullmatch(r"(?:[A-Z][a-z]+)+", reason) for reason in reasons)
    assert len(set(reasons)) == len(reasons)


def test_no_other_module_defines_an_error_of_its_own() -> None:
    elsewhere = set()
    for module in pkgutil.walk_packages(trial_trainer.__path__, "trial_trainer."):
        if module.name.endswith("__main__"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module.name:
                elsewhere.add((module.name.rpartition(".")[2], value.__name__))
    found = {(module, name) for module, name in elsewhere if module != "errors"}
    # The store's and the contract's are the operator's, too; a refused address is one of the system's errors; how a
    # request to the teacher ended never leaves its module.
    assert found == {
        ("artifacts", "ArtifactError"),
        ("contract", "ContractError"),
        ("s3_guard", "AddressRefusedError"),
        ("teacher", "_FailedRequestError"),
    }
