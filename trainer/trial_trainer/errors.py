"""What can end a trial, as a tree. `__main__` turns each into the exit code of the contract.

    TrainerError                      1, nobody's choice: try again
    ├── Diverged                     10, the arm's fault
    ├── ArmError                     11, the arm's fault
    ├── StudyError                   12, the study's fault
    │   ├── BaseModelError
    │   ├── DatasetError
    │   ├── PrepareError
    │   ├── PromptError
    │   └── TeacherError
    ├── TeacherUnavailableError       1, what it has answered is kept
    └── UnsupportedAttentionError     1, but `model` catches it and does without shared pages

Each carries a CamelCase ``reason``. Two lie elsewhere, because the operator raises them too: `contract.ContractError`
(12) and `artifacts.ArtifactError` (1). They and everything unforeseen are ended with by the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from trial_trainer.contract import ExitCode

ENVIRONMENT = 1
"""The exit code of everything that the contract has no code for: nobody's choice, so another attempt may succeed."""


class TrainerError(Exception):
    """One sentence for a person: the field or the thing, the rule, the value."""

    reason: ClassVar[str] = "TrainerFailed"
    exit_code: ClassVar[int] = ENVIRONMENT


class Diverged(TrainerError):  # noqa: N818 - it is what the run did, and a measurement
    """The loss became non-finite or exploded."""

    reason = "Diverged"
    exit_code = ExitCode.DIVERGED


class ArmError(TrainerError):
    """The arm cannot run: out of memory at this batch, target modules that the model lacks, a bad parameter."""

    reason = "ArmCannotRun"
    exit_code = ExitCode.ARM_CANNOT_RUN


class StudyError(TrainerError):
    """The dataset or the model cannot be used, or the checkpoint is of another number of processes."""

    reason = "StudyCannotRun"
    exit_code = ExitCode.STUDY_CANNOT_RUN


class BaseModelError(StudyError):
    """The base model cannot be used: its URI and what is wrong with it."""

    reason = "BaseModelUnusable"


class DatasetError(StudyError):
    """The dataset cannot be read: which part of which dataset, and why."""

    reason = "DatasetUnusable"


class PrepareError(StudyError):
    """The data or the settings of a preparation cannot be used."""

    reason = "DataUnusable"

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class PromptError(StudyError):
    """The tokenizer or its chat template cannot be used to make prompts: what it must do and does not."""

    reason = "ChatTemplateUnusable"


class TeacherError(StudyError):
    """The teacher cannot be asked as the study says: its endpoint, its model, or the form of its answers."""

    reason = "TeacherUnusable"


class TeacherUnavailableError(TrainerError):
    """The teacher gives no answers at the moment, or does not take our key."""

    reason = "TeacherUnavailable"


class UnsupportedAttentionError(TrainerError):
    """The model asks for something that our attention to shared pages does not compute."""

    reason = "AttentionUnsupported"
