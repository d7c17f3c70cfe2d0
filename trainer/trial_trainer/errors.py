"""What can end a trial, as a tree. `__main__` turns each into the exit code of the contract.

    TrainerError
    ├── Diverged      10, the arm's fault
    ├── ArmError      11, the arm's fault
    └── StudyError    12, the study's fault

A plain `TrainerError`, an `ArtifactError` and everything unforeseen are the environment's fault: 1, try again.
"""

from __future__ import annotations

from typing import ClassVar

from trial_trainer.contract import ExitCode

ENVIRONMENT = 1
"""The exit code of everything that the contract has no code for: nobody's choice, so another attempt may succeed."""


class TrainerError(Exception):
    """One sentence for a person: the field or the thing, the rule, the value."""

    exit_code: ClassVar[int] = ENVIRONMENT


class Diverged(TrainerError):  # noqa: N818 - it is what the run did, and a measurement
    """The loss became non-finite or exploded."""

    exit_code = ExitCode.DIVERGED


class ArmError(TrainerError):
    """The arm cannot run: out of memory at this batch, target modules that the model lacks, a bad parameter."""

    exit_code = ExitCode.ARM_CANNOT_RUN


class StudyError(TrainerError):
    """The dataset or the model cannot be used, or the checkpoint is of another number of processes."""

    exit_code = ExitCode.STUDY_CANNOT_RUN
