"""What the reconcile loop asks of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from study_operator.errors import OperatorError
from study_operator.ledger.trial import Trial
from study_operator.optimizer.reading import ModelReading
from study_operator.spec.study import Arm, Study

EXPLORATION_NODE = "Explore_Sobol"
"""The generation node of an arm that is spread out because the model ranks the measured arms no better than chance."""

WARM_START_NODE = "WarmStart"
"""The generation node of an arm that was the best of an earlier study."""

STAGNATION_NODE = "Explore_Gap"
"""The generation node of an arm that fills a gap because the search stagnates (`ledger.stagnation`)."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """An arm that was not yet run, with the generation node that proposed it."""

    arm: Arm
    generation_node: str


class DesignerError(OperatorError):
    """The optimizer cannot propose; never a reason to wait silently."""

    reason = "OptimizerFailed"


class ProposalPendingError(OperatorError):
    """The optimizer is still at it: the same question will be answered later, and whoever asked is told when.

    Its message, where it has one, says what went wrong so far.
    """

    reason = "ProposalPending"


class Designer(Protocol):
    """Proposes arms from the ledger alone: the same ledger gives the same proposal."""

    def suggest(self, study: Study, trials: Sequence[Trial], count: int) -> tuple[Suggestion, ...]:
        """Return up to ``count`` arms; fewer, even none, means: wait for a running trial.

        Raises:
            DesignerError: where no arm can be proposed and no trial is running.
            ProposalPendingError: where the answer is not there yet.
        """
        ...


class ModelReader(Protocol):
    """Reads the optimizer's model for people."""

    def read_model(self, study: Study, trials: Sequence[Trial], through: Arm, *, is_last: bool) -> ModelReading:
        """Return what a model of the measured trials says.

        Args:
            study: the study.
            trials: its ledger, of which `reading.LEAST_MEASURED` or more are measured.
            through: the arm that slices go through.
            is_last: no more will be measured: the answer must be of this ledger, and not of one just before it.

        Raises:
            DesignerError: where no model can be read.
            ProposalPendingError: where the answer is not there yet; whoever asked is woken by it.
        """
        ...


class Optimizer(Designer, ModelReader, Protocol):
    """Proposes arms, and tells people of its model."""
