"""How long, how many and how much a manifest may say: what `spec/study.py` checks and what the CRD is made with.

Values only. The largest study that they allow keeps its object under a mebibyte, with 500 trials in its status and the
copy of the spec that `kubectl apply` puts into an annotation (`tests/manifests/test_size.py`).
"""

from __future__ import annotations

from typing import NamedTuple


class Whole(NamedTuple):
    """A whole number from ``low`` to ``high``."""

    low: int
    high: int
    default: int | None = None
    """What holds where the field is not given; None: nothing."""

    def allows(self, value: object) -> bool:
        """Say whether a value is such a number."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def says(self) -> str:
        """Return the bounds in words."""
        return f"a whole number from {self.low} to {self.high}"


MAX_TRIALS = 500
"""And of trials, confirmations and runs of the data curve together."""
MAX_INT32 = 2**31 - 1

GENERATION = Whole(0, 2**63 - 1, 0)
NUM_TRIALS = Whole(1, MAX_TRIALS)
PARALLEL_TRIALS = Whole(1, 100, 1)
MAX_FAILED_TRIALS = Whole(0, MAX_TRIALS, 5)
SEED = Whole(0, MAX_INT32, 0)
TYPICAL_ARMS = Whole(0, 4)
DEFAULT_TYPICAL_ARMS = 3
"""And at most a quarter of the trials, so that most arms are searched for."""
CHECKPOINT_PERCENT = Whole(1, 99, 20)
"""The default holds where no rungs are given."""
RUNG_PERCENT = Whole(1, 99)
EXTRA_PERCENT = Whole(1, 99)
NUM_PROMOTED = Whole(1, MAX_TRIALS, 1)
NUM_AUDITED = Whole(0, MAX_TRIALS, 0)
CONFIRM_SEEDS = Whole(0, 10, 0)
"""Each takes two runs to full length."""
PROMOTED_PERCENT = Whole(1, 100)
DEFAULT_PROMOTED_PERCENT = 33
"""A third: Li et al. (2018), "Hyperband", section 3.6 (their eta is 3)."""
ACTIVE_DEADLINE_SECONDS = Whole(1, MAX_INT32)
TTL_SECONDS_AFTER_FINISHED = Whole(0, MAX_INT32)
VALIDATION_PERCENT = Whole(1, 90, 20)
TEST_PERCENT = Whole(0, 90, 10)
"""The default is 0 where there is a test source."""
MAX_HELD_OUT_PERCENT = 90
MAX_PAGES = Whole(1, 10**9)
TEACHER_MAX_ANSWER_TOKENS = Whole(16, 2**17, 1024)
TEACHER_MAX_TOKENS = Whole(1, 10**12)
TEACHER_SELF_CONSISTENCY_SAMPLES = Whole(0, 100_000, 0)
TEACHER_PARALLEL_REQUESTS = Whole(1, 64, 4)
TEACHER_TIMEOUT_SECONDS = Whole(1, 3600, 120)
VARIANTS = Whole(1, 20, 3)
EPOCHS = Whole(1, 10_000)
MAX_LENGTH_TOKENS = Whole(32, 2**20, 1024)
WARMUP_PERCENT = Whole(0, 100, 10)
SAMPLE_SIZE = Whole(1, 10**9)
CURVE_ADAPTERS_BYTES = 120_000
"""What the final evaluation's configuration may take to name adapters, of confirmations too. It is one environment
variable, and Linux starts no process with one of more than 128 KiB (execve(2), MAX_ARG_STRLEN)."""
CURVE_SEEDS = Whole(1, 10, 3)
NODES = Whole(1, 64, 1)
ACCELERATORS_PER_NODE = Whole(1, 64, 1)

# Lists: most items.
PARAMETERS_LENGTH = 20
VALUES_LENGTH = 50
STARTING_ARMS_LENGTH = 50
WARM_START_LENGTH = 3
OUTCOME_CONSTRAINTS_LENGTH = 10
PARAMETER_CONSTRAINTS_LENGTH = 10
EXTRA_PERCENTS_LENGTH = 10
RUNGS_LENGTH = 4
SAMPLE_SIZES_LENGTH = 20
ATTRIBUTES_LENGTH = 50
TARGET_MODULES_LENGTH = 100
CONTAINERS_LENGTH = 100

# Strings: most characters.
NAME_LENGTH = 40
"""Of a study: the names of its Jobs and labels hold 63."""
NAMESPACE_LENGTH = 63
UID_LENGTH = 128
NUMBER_LENGTH = 24
"""As many as `repr` of a number takes at most."""
CONSTRAINT_LENGTH = 200
ATTRIBUTE_LENGTH = 40
MODULE_LENGTH = 64
METRIC_LENGTH = ATTRIBUTE_LENGTH + len("accuracy/")
PLACE_LENGTH = 1000
REVISION_LENGTH = 200
ENDPOINT_LENGTH = 500
REGION_LENGTH = 50
OBJECT_NAME_LENGTH = 253
KEY_LENGTH = 253
TEACHER_MODEL_LENGTH = 200
TEACHER_INSTRUCTIONS_LENGTH = 2000

TEMPLATE_BYTES = 10 * 1024
"""Of a pod template as compact JSON: what a person writes takes a few thousand. `kubectl apply` keeps a second copy."""

CHECKPOINT_LENGTH = 64
"""Of the key of a checkpoint as a trainer writes it into its measurement: ours take 30."""

LEDGER_VALUES = 4_000
"""Of all trials, confirmations and runs of the data curve together: an entry holds a value of each parameter, and each
measurement of an attribute's accuracy that a constraint bounds takes the room of two."""

LEDGER_MEASUREMENTS = 1_000
"""Of all trials together: one on each rung. A confirmation or a run of the data curve counts as a trial."""
