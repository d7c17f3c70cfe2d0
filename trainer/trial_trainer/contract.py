"""The trial contract, version 2: what the operator hands to a trainer and what it reads back.

Standard library only, because the operator imports it. Any image may be a trainer if it keeps this:

* ``python -m trial_trainer prepare`` with ``PREPARE_CONFIG`` writes a dataset and its ``summary.json``;
* ``python -m trial_trainer`` with ``TRIAL_CONFIG`` trains up to ``stop_step`` and writes ``measurement.json`` last;
* ``python -m trial_trainer final-evaluation`` with ``FINAL_EVALUATION_CONFIG`` reads the test set once and writes
  ``final-evaluation.json``.

Every configuration and result is one JSON document. Parsing reports every wrong field at once. Within a version a field
may be added to a configuration if a trainer that passes it over computes the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Annotated, Any, ClassVar, TypeVar

from trial_trainer.codec import JSON, Count, Positive, Problem, Rule, at_least, between, has_wrong

VERSION = 2

LEAST_SITES = 5
"""Pages of one site look alike, so errors are estimated from the differences between sites. With fewer sites there are
no standard errors and no intervals: of a share they would be wider than half of all that is possible."""

LEAST_SEEDS = 3
"""Further training seeds from which a gain has an interval over seeds: of two, Student's quantile is 12.7, and an
interval is either wider than anybody can use or does not hold the truth."""

TRIAL_CONFIG = "TRIAL_CONFIG"
PREPARE_CONFIG = "PREPARE_CONFIG"
FINAL_EVALUATION_CONFIG = "FINAL_EVALUATION_CONFIG"
TEACHER_API_KEY = "TEACHER_API_KEY"
"""Environment variable of preparing alone: the key of a teacher that wants one."""
ATTEMPT = "TRIAL_ATTEMPT"
"""Environment variable that tells attempts of one job apart (a pod's UID); a random word where it is not set."""

GRACE = "TRIAL_GRACE_SECONDS"
"""Environment variable: seconds that the ranks have to save a checkpoint after a request to stop."""
MASTER_ADDRESS, MASTER_PORT = "MASTER_ADDR", "MASTER_PORT"
"""Environment variables, torch's own: where the first of many nodes is met. One node needs neither."""
NODE_INDEX = "JOB_COMPLETION_INDEX"
"""Environment variable: which of many nodes this is, from 0; an Indexed Job sets it."""

# Keys under the output prefix of a rung.
MEASUREMENT = "measurement.json"
LATEST = "latest.json"
ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
MEASUREMENTS = "measurements"
PREDICTIONS = "predictions.jsonl"
TRAINING_LOSSES = "training-losses.json"
LOGS = "logs"
# Keys under the dataset prefix and under the final evaluation's output prefix.
SUMMARY = "summary.json"
LEDGER = "ledger.json"
"""Of a study, under its prefix."""
FINAL_EVALUATION = "final-evaluation.json"
EXAMPLES = "examples.json"

ParameterValue = float | int | str


class ExitCode(IntEnum):
    """What the end of the container means. Anything else, and 0 without a measurement, is the environment's fault."""

    STOP_STEP_REACHED = 0
    DIVERGED = 10
    """The arm's fault: the loss became non-finite or exploded."""
    ARM_CANNOT_RUN = 11
    """The arm's fault: one sample does not fit into memory with its adapter, target modules that the model lacks."""
    STUDY_CANNOT_RUN = 12
    """The study's fault: the data or the model cannot be used, or do not fit into memory whatever the arm."""
    ASKED_TO_STOP = 143
    """SIGTERM came, and a checkpoint was saved."""


class Precision(StrEnum):
    """The type of the frozen base weights and of the matrix products; the loss is always computed in fp32."""

    BFLOAT16 = "BFloat16"
    FLOAT32 = "Float32"


class ContractError(ValueError):
    """A configuration or result does not keep the contract. The message names every wrong field."""

    reason: ClassVar[str] = "ContractBroken"


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """Where the base model's weights and tokenizer come from."""

    uri: str
    """A directory, or ``hf://owner/name``, or ``s3://bucket/prefix``."""
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """What is the same for every arm of a study."""

    epochs: Positive
    max_length_tokens: Positive
    """Upper limit of one sample (prompt and answer); a page is cut so that its longest sample fits."""
    precision: Precision = Precision.BFLOAT16
    target_modules: str | tuple[str, ...] = "AllLinear"
    """``AllLinear``, or the names of the modules that get an adapter."""
    rs_lora: bool = False
    warmup_percent: Annotated[int, between(0, 100)] = 10
    weight_decay: Annotated[float, at_least(0)] = 0.0
    processes: Positive = 1
    """Ranks of this trial on this node; more than one are started through accelerate's launcher."""
    nodes: Positive = 1
    """Nodes of this trial, each with as many ranks; they meet at the first one's ``MASTER_ADDR``."""

    @property
    def ranks(self) -> int:
        """Ranks of this trial on all nodes."""
        return self.nodes * self.processes


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One rung of one trial."""

    study: str
    trial: str
    """For example ``t003``."""
    rung: Count
    seed: Count
    arm: Mapping[str, ParameterValue]
    base_model: BaseModel
    dataset: str
    """URI of the prefix that ``prepare`` wrote."""
    output: str
    """URI of the prefix of this rung."""
    total_steps: Positive
    """Optimizer steps of the full length; the schedule depends on it and never on ``stop_step``."""
    stop_step: Count
    """Optimizer step after which this rung ends, evaluates and writes its measurement."""
    trainer: TrainerSettings
    evaluate_at_steps: tuple[Count, ...] = ()
    """Steps at which the validation set is read on the way; each writes ``measurements/<step>.json``."""
    train_samples: Positive | None = None
    """Train on the first so many samples of the order that the seed decides (`dataset.subset`); None means all."""
    balanced: bool = False
    """Of ``train_samples``: take from all attributes in turn."""
    is_augmented: bool = True
    """Where the dataset has variants of its training pages: read them, too."""
    resume_from: str | None = None
    """URI of an earlier rung's output prefix. A newer whole checkpoint under ``output`` wins over it."""
    progress: str | None = None
    """URI of the key that is refreshed while the trial runs."""
    dataset_fingerprint: str = ""
    """The dataset's, as its summary has it: another dataset at that place is refused. Empty: any will do."""
    digest: str = ""
    """Of all that decides the result (`digest_of`). Whatever the trial writes carries it, and nothing that carries
    another counts: no checkpoint, no measurement. Empty where a person starts a trial by hand."""
    contract_version: Count = VERSION

    def find_broken_rules(self) -> Iterator[Problem]:
        """Yield what no trainer could do, so that it is refused before anything heavy is loaded."""
        if not 1 <= self.stop_step <= self.total_steps:
            yield Problem(f"must be from 1 to total_steps {self.total_steps}", self.stop_step, ".stop_step")


class LabelSource(StrEnum):
    """Where the labels of training and validation pages come from."""

    GIVEN = "Given"
    MARKUP = "Markup"
    TEACHER = "Teacher"
    """A language model behind an OpenAI-compatible endpoint."""


class AnswerFormat(StrEnum):
    """How a teacher's server is asked for JSON. Whatever it is, every answer is validated."""

    JSON_SCHEMA = "JSONSchema"
    """By a JSON schema, which the server enforces while the model writes."""
    JSON_OBJECT = "JSONObject"
    """The server promises JSON, of any form."""
    TEXT = "Text"
    """By the words of the prompt alone: for servers that know none of the others."""


class OutOfTokens(StrEnum):
    """What becomes of the pages that are labelled when a teacher's tokens are used up."""

    USE = "Use"
    """The dataset is made of them."""
    REFUSE = "Refuse"
    """There is no dataset; the answers are kept."""


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """A language model that labels pages, and how it is asked."""

    endpoint: str
    """Base URL of an OpenAI-compatible API: ``https://api.openai.com/v1``."""
    model: str
    """Name of the model, as the server knows it."""
    kept_answers: str
    """URI of the prefix under which every answer is kept, for later attempts and for other studies."""
    answer_format: AnswerFormat = AnswerFormat.JSON_SCHEMA
    instructions: str = ""
    """What the teacher is told of the task, beside the names of the attributes."""
    temperature: Annotated[float, between(0, 2)] | None = None
    """None: it is not sent, and the server's own default holds."""
    max_answer_tokens: Positive = 1024
    """Upper limit of one answer."""
    max_tokens: Positive | None = None
    """Upper limit of the tokens of all answers and their prompts, kept ones included; None means no limit."""
    when_tokens_run_out: OutOfTokens = OutOfTokens.USE
    self_consistency_samples: Count = 0
    """Pages that are labelled twice, so that it can be told how often the teacher contradicts itself."""
    parallel_requests: Positive = 4
    timeout_seconds: Positive = 120
    """Of silence, after which a request is given up."""


class MissingLabel(StrEnum):
    """What it means that a record's given labels leave an attribute out."""

    UNKNOWN = "Unknown"
    """Nobody looked: the attribute is not asked there."""
    ABSENT = "Absent"
    """Somebody looked and found none: it is asked, and "none" is the right answer."""


class SplitBy(StrEnum):
    """What must not be in two splits at once."""

    SITE = "Site"
    PAGE = "Page"


@dataclass(frozen=True, kw_only=True)
class Split:
    """How pages are divided, in percent of the groups (sites or pages)."""

    by: SplitBy = SplitBy.SITE
    validation_percent: Count = 20
    test_percent: Count = 10
    """Zero where an independent test source is given."""


class Edit(StrEnum):
    """How a variant of a training page or text may differ from it."""

    DROP_LINES = "DropLines"
    """Lines without an answer are left out."""
    SWAP_LINES = "SwapLines"
    """Neighbouring lines change places."""
    REPLACE_VALUES = "ReplaceValues"
    """Values are replaced by those of other training pages, wherever they stand."""
    REFORMAT_VALUES = "ReformatValues"
    """Prices and dates are written in another way."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Variants of training pages: each epoch reads another one, so that no run gets longer by them."""

    copies: Positive
    """Variants of each page, beside the page itself."""
    edits: tuple[Edit, ...] = tuple(Edit)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Raw pages and texts, or ready samples, into one validated, split and tokenised dataset."""

    study: str
    source: str
    """A directory or prefix of pages, or one ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file."""
    attributes: tuple[str, ...]
    """The attributes that are asked; empty where the source holds ready prompt/completion samples."""
    labels_from: LabelSource
    split: Split
    seed: Count
    base_model: BaseModel
    max_length_tokens: Positive
    dataset: str
    """URI of the prefix to write."""
    test_source: str | None = None
    max_pages: Count | None = None
    """Upper limit of pages taken from each source, drawn by the seed; None means all."""
    missing_labels: MissingLabel = MissingLabel.UNKNOWN
    """`ABSENT` needs labels that are given, for every record, or a teacher's."""
    teacher: TeacherSettings | None = None
    """Given where the labels are a teacher's."""
    augment: Augmentation | None = None
    earlier: tuple[str | None, ...] = ()
    """URIs of other studies' prefixes, whose ledgers are copied into the dataset; None for one that is not the job's to
    copy."""
    digest: str = ""
    """Of all that decides the dataset (`digest_of`); its summary carries it."""
    contract_version: Count = VERSION


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One adapter that the evaluate reads the test set with."""

    trial: str
    adapter: str
    """URI of the adapter's prefix."""
    digest: str = ""
    """Of the trial, which the measurement beside the adapter carries too."""


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """Winner and baseline, trained once more under the same seed, another one than the study's."""

    seed: Count
    winner: Candidate
    baseline: Candidate


@dataclass(frozen=True, kw_only=True)
class FinalEvaluationConfig:
    """Read the test set once: for the winner, the baseline, the untrained model, confirmations and the data curve."""

    study: str
    winner: Candidate
    baseline: Candidate | None
    base_model: BaseModel
    dataset: str
    output: str
    trainer: TrainerSettings
    winner_early: Candidate | None = None
    """The winner's adapter of its first rung, by which nothing is chosen."""
    confirmations: tuple[Confirmation, ...] = ()
    """From these the gain over the baseline is told with the noise of seeds."""
    curve: tuple[Candidate, ...] = ()
    """Runs of the data curve, of which only scores are kept."""
    progress: str | None = None
    """URI of the key that is refreshed while the test set is read."""
    dataset_fingerprint: str = ""
    """The dataset's, as its summary has it: another dataset at that place is refused. Empty: any will do."""
    digest: str = ""
    """Of all that decides the result (`digest_of`); the final evaluation carries it."""
    contract_version: Count = VERSION


SMALLEST, LARGEST = 1e-99, 1e99
"""Numbers with an exponent of three digits are none that anything measures, and the study's schema stores none."""

Measured = Annotated[
    float,
    Rule(
        f"must be 0 or from {SMALLEST:g} to {LARGEST:g}", lambda value: not value or SMALLEST <= abs(value) <= LARGEST
    ),
]

SHARES = ("accuracy", "false_value_rate", "invalid_output_rate")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number with what is needed to read it."""

    value: Measured
    standard_error: Annotated[Measured, at_least(0)] | None
    """Clustered by site; None where it cannot be estimated: fewer than `LEAST_SITES`, or all sites alike."""
    n: Count
    """Questions (or answers) that the value is a mean of. Of none the value means nothing."""
    sites: Count | None = None
    """Sites that the questions are of; None where nothing is said of them."""
    low: float | None = None
    high: float | None = None
    """The 95 % interval of a share, clustered by site; None where there are fewer than `LEAST_SITES`."""


@dataclass(frozen=True, kw_only=True)
class SiteSum:
    """What one site, or one group of sites, adds to a metric that is a weighted mean over questions."""

    total: Measured
    """The weighted sum over its questions."""
    weight: Annotated[Measured, at_least(0)]
    """The sum of their weights. Over all sites the weights add up to the number of questions."""


@dataclass(frozen=True, kw_only=True)
class RungMeasurement:
    """What one rung of one trial measured. That it exists means that its checkpoint is whole."""

    study: str
    trial: str
    rung: Count
    step: Count
    total_steps: Count
    checkpoint: str
    """Key of the checkpoint, relative to the output prefix."""
    metrics: Mapping[str, Metric]
    """``accuracy``, ``false_value_rate``, ``invalid_output_rate``, ``validation_loss`` (nats per token),
    ``accuracy/<attribute>`` for each asked attribute, and ``gibberish_rate``, which may be left out: no trial is
    gibberish then."""
    samples_seen: Count
    tokens_per_second: float
    """Trained tokens that are not padding, per second of training, in the last attempt."""
    peak_memory_bytes: Count
    seconds: Mapping[str, float]
    """Wall seconds by phase (``load``, ``train``, ``evaluate``, ``save``) in the last attempt."""
    trained_steps: Count | None = None
    """Optimizer steps of the last attempt, which its seconds of training are of; None: all since the rung began."""
    versions: Mapping[str, str] = field(default_factory=dict)
    by_site: Mapping[str, Mapping[str, SiteSum]] = field(default_factory=dict)
    """Of a run of the data curve: ``accuracy`` and ``validation_loss``, where it has them, by site. From these the
    curve's intervals are resampled; of more than 100 sites it tells that many groups of them."""
    digest: str = ""
    """The configuration's."""
    contract_version: Count = VERSION

    def find_broken_rules(self) -> Iterator[Problem]:
        """Yield the metrics that no evaluation could have measured."""
        for name, metric in self.metrics.items():
            if name.partition("/")[0] in SHARES and not 0 <= metric.value <= 1:
                yield Problem("must be from 0 to 1", metric.value, f".metrics[{name!r}].value")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a running trial is, or the final evaluation, whose steps are the questions that a model has answered."""

    step: Count
    stop_step: Count
    """The rung's end; of the final evaluation, the questions that this model is asked."""
    total_steps: Count
    """The full length; of the final evaluation, the questions of all its models together."""
    loss: float | None
    """Mean loss of the last ten steps, nats per token."""
    phase: str
    """``load``, ``train``, ``evaluate`` or ``save``; of the final evaluation, the predictor that is asked, or the trial
    that confirms or is of the data curve."""
    eta_seconds: float | None
    updated_at: str
    """ISO 8601, UTC."""
    digest: str = ""
    """The configuration's."""


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """What one split of the dataset holds."""

    pages: Count
    samples: Count
    sites: Count
    tokens: Count
    """Tokens of all samples when those of one page share its tokens."""
    samples_by_attribute: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class TeacherSummary:
    """What a teacher was asked for a dataset, and what came of it."""

    endpoint: str
    model: str
    pages: Mapping[str, int]
    """Pages by their fate: ``Labelled``, ``Malformed`` (no JSON of the asked form), ``Refused``, ``CutOff`` (at
    ``max_answer_tokens``), ``Rejected`` (the server took no such request), ``RateLimited``, ``ServerError``,
    ``TimedOut``, ``Disconnected``, ``OutOfTokens``. The last five were asked for in vain, or not at all."""
    retries: Mapping[str, int]
    """Requests of this preparation that failed and were sent again, by the same names."""
    pages_again: Mapping[str, int]
    """Pages of the second pass by their fate; empty where there was none."""
    kept_answers: Count
    """Answers that were in the bucket already."""
    prompt_tokens: Count
    """Of all answers, kept ones included, as the server counts them."""
    answer_tokens: Count
    new_tokens: Count
    """Of prompts and answers of this preparation alone."""


class LabelOrigin(StrEnum):
    """Who says what a label says."""

    MARKUP = "Markup"
    TEACHER = "Teacher"
    TEACHER_AGAIN = "TeacherAgain"
    """The same teacher, asked a second time."""
    GIVEN = "Given"


@dataclass(frozen=True, kw_only=True)
class LabelAgreement:
    """How often two origins of labels say the same, where both label the same attribute of a page."""

    one: LabelOrigin
    other: LabelOrigin
    attribute: str | None
    """None: the mean over the attributes."""
    metric: Metric


class CeilingBasis(StrEnum):
    """What a ceiling was worked out from."""

    GIVEN_LABELS = "GivenLabels"
    """From labels that people gave: where a model that is always right would be measured."""
    SELF_CONSISTENCY = "SelfConsistency"
    """From a teacher's second pass: what no model can exceed."""


@dataclass(frozen=True, kw_only=True)
class LabelCeiling:
    """What wrong labels leave of validation accuracy."""

    basis: CeilingBasis
    attribute: str | None
    """None: the mean over those attributes of which it can be told."""
    metric: Metric


@dataclass(frozen=True, kw_only=True)
class LabelAudit:
    """How far the labels can be trusted."""

    agreements: tuple[LabelAgreement, ...]
    ceilings: tuple[LabelCeiling, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What ``prepare`` wrote: the operator plans with it, people read it."""

    study: str
    splits: Mapping[str, SplitSummary]
    """``train``, ``validation`` and, where there is one, ``test``."""
    skipped_pages: Mapping[str, int]
    """Pages left out, by the name of the reason."""
    dropped_labels: Mapping[str, int]
    """Labels whose value cannot be derived from the cut text, by attribute."""
    pages_of_test_sites: Count
    """Training and validation pages dropped because their site is in the test set."""
    warnings: tuple[str, ...]
    fingerprint: str
    """Digest of the samples: the same pages, settings and tokenizer give the same."""
    repeats_of_test: Count = 0
    """Training and validation pages or samples dropped because they stand in the test set: equal in text, and with
    pages that are split by page, in id or address."""
    conflicting_labels: Count = 0
    """Questions that are asked several times in equal words and whose answers contradict each other."""
    guessed_encodings: Mapping[str, int] = field(default_factory=dict)
    """Pages whose encoding was guessed, by the encoding that was taken."""
    unusable_labels: Mapping[str, int] = field(default_factory=dict)
    """Labels that can't be read as a value of their attribute, by attribute; they are left out."""
    variants: Count = 0
    """Of training pages, where the study augments its data."""
    ambiguous_currencies: Count = 0
    """Currency labels not trained on: the page prints a sign that may mean several currencies."""
    teacher: TeacherSummary | None = None
    """None where the labels are not a teacher's."""
    audit: LabelAudit | None = None
    """None where no attribute of a page has two labels."""
    records: Mapping[str, int] = field(default_factory=dict)
    """Records of all splits by what is asked about: ``Page`` or ``Text``. Empty of ready samples, and in summaries of
    earlier versions."""
    digest: str = ""
    """The configuration's."""
    contract_version: Count = VERSION


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A paired difference of two predictors on the same pages, with its 95 % interval clustered by site."""

    difference: float
    low: float | None
    high: float | None
    """None where there are fewer than `LEAST_SITES`: nothing is excluded."""
    n: Count
    sites: Count


@dataclass(frozen=True, kw_only=True)
class SeedInterval:
    """The mean over further training seeds of a paired difference, with its 95 % interval over sites and seeds."""

    difference: float
    low: float | None
    high: float | None
    """None where there are fewer than `LEAST_SEEDS`, or fewer than `LEAST_SITES`."""
    n: Count
    """Questions, the same under each seed."""
    sites: Count
    by_seed: Mapping[str, float]
    """The difference under each seed."""


@dataclass(frozen=True, kw_only=True)
class WinnerChange:
    """What became of the winner on validation and training between its first rung and its end."""

    accuracy: Interval | None
    """On validation, paired by question; None where nothing can be compared."""
    loss: Interval | None
    """Likewise of the answers' loss in nats per token; more than 0 where it rose."""
    training_loss_before: float | None
    """Mean over the last steps of the first rung, in nats per token; None where the trainer left no losses."""
    training_loss_after: float | None
    """Mean over as many steps at the end."""


@dataclass(frozen=True, kw_only=True)
class PredictorScores:
    """How one predictor did on the test set."""

    hand_labelled: Metric
    """Mean over the attributes that people labelled."""
    all_asked: Metric
    by_attribute: Mapping[str, Metric]
    invalid_output_rate: Metric
    false_value_rate: Metric
    cut_answer_rate: Metric | None = None
    """Share of answers that were cut off at the limit of tokens; None in final evaluations of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class FinalEvaluation:
    """The test set, read once. Predictors: ``winner``, ``winner_early`` (its adapter of the first rung), ``baseline``,
    ``untrained``, ``rule_based``, ``constant``."""

    study: str
    winner: str
    predictors: Mapping[str, PredictorScores]
    gains: Mapping[str, Interval]
    """``<measure>/winner-<other>``, for those of the measures ``hand_labelled`` and ``all_asked`` that any question of
    the test set has."""
    seconds: Mapping[str, float]
    winner_change: WinnerChange | None = None
    """None where the winner's first rung left nothing to compare with."""
    confirmations: Mapping[str, PredictorScores] = field(default_factory=dict)
    """By name of the trial: winner and baseline under further seeds."""
    seed_gains: Mapping[str, SeedInterval] = field(default_factory=dict)
    """``<measure>/winner-baseline`` over the seeds of the confirmations, without the winner's own run: that one was
    chosen for its luck, too."""
    curve: Mapping[str, PredictorScores] = field(default_factory=dict)
    """By name of the trial: the runs of the data curve."""
    digest: str = ""
    """The configuration's."""
    contract_version: Count = VERSION


class ExampleKind(StrEnum):
    """Why a page of the test set is shown, by one of its questions: the winner's answer beside the reference's."""

    GAINED = "Gained"
    """The winner is right where the reference is not."""
    LOST = "Lost"
    """The reference is right where the winner is not."""
    BOTH_WRONG = "BothWrong"
    BOTH_RIGHT = "BothRight"


@dataclass(frozen=True, kw_only=True)
class ExampleQuestion:
    """One question of a page that is shown, and what was answered."""

    attribute: str
    gold: tuple[str, ...]
    """Accepted values; empty means that the page is known to have none."""
    answers: Mapping[str, str]
    """By predictor, as text."""
    right: tuple[str, ...]
    """The predictors whose answer is right; of a question without a value, those that state none."""
    lines: tuple[Count, ...]
    """Indexes of the page's lines in which the value stands; empty where it stands nowhere as it is."""


@dataclass(frozen=True, kw_only=True)
class ExamplePage:
    """One page of the test set as people read it."""

    page: str
    site: str
    kind: ExampleKind
    lines: tuple[str, ...]
    """Of its text, as the model read it; empty where that cannot be told."""
    lines_in_all: Count
    questions: tuple[ExampleQuestion, ...]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A bounded number of pages of the test set, chosen by a rule that looks at no page's text."""

    reference: str
    """The predictor that the winner is compared with: ``baseline``, or ``untrained`` where the baseline won."""
    pages: tuple[ExamplePage, ...]
    pages_by_kind: Mapping[str, int]
    """How many pages of the test set are of each kind; one page may be of several."""
    pages_in_all: Count
    digest: str = ""
    """The configuration's."""
    contract_version: Count = VERSION


# --- What decides a result ---------------------------------------------------------------------------------------

_PLACES = frozenset(
    {
        *("study", "trial", "rung", "dataset", "adapter", "output", "progress", "contract_version"),
        *("kept_answers", "parallel_requests", "timeout_seconds"),
        *("stop_step", "evaluate_at_steps", "resume_from"),
    }
)
"""What a configuration says of names, of places, of haste, and of how much of a run one job does: a run that is cut
into pieces, or read on the way, is the same run."""


def digest_of(config: TrialConfig | PrepareConfig | FinalEvaluationConfig) -> str:
    """Return the digest of all in a configuration that decides the result.

    Of a trial: arm, seed, data (by their fingerprint), base model, full length and the trainer's settings. It is the
    same on every rung. What is at its default is left out, so that a field that is added later changes no digest.
    """
    deciding = _deciding(dataclasses.replace(config, digest=""))
    return hashlib.sha256(to_json(deciding).encode()).hexdigest()[:16]


def _deciding(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_deciding(part) for part in value]
    if not dataclasses.is_dataclass(value):
        return value
    found = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value) if f.name not in _PLACES}
    return {name: _deciding(part) for name, (part, default) in found.items() if part != default}


def earlier_key(index: int) -> str:
    """Return the key under a dataset at which the ledger of an earlier study lies."""
    return f"earlier/{index}.json"


def count_total_steps(samples: int, batch_size: int, epochs: int) -> int:
    """Return the optimizer steps of a full run; what remains of an epoch after whole batches is dropped."""
    return epochs * (samples // batch_size)


# --- JSON ------------------------------------------------------------------------------------------------------

T = TypeVar("T")


def to_json(value: Any) -> str:
    """Render a contract value as JSON with sorted keys; a non-finite number raises ``ValueError``."""
    # Each dataclass in it as its own fields; `asdict` would copy every leaf first.
    return json.dumps(value, default=vars, sort_keys=True, allow_nan=False)


def from_json(cls: type[T], text: str | bytes, *, ignored: list[str] | None = None) -> T:
    """Parse a contract value.

    Args:
        cls: what it must be.
        text: JSON.
        ignored: where it is given, unknown fields are no error: their names are added here.

    Raises:
        ContractError: naming every unknown, missing or wrong field; or the version, where it is another one.
    """
    try:
        raw = json.loads(text)
    except (ValueError, UnicodeDecodeError) as error:
        raise ContractError(f"{cls.__name__} must be JSON: {error}") from error
    except RecursionError as error:
        raise ContractError(f"{cls.__name__} must be JSON that is not nested so deeply") from error
    # Of another version the fields are other ones too.
    version = raw.get("contract_version", VERSION) if isinstance(raw, dict) and _is_versioned(cls) else VERSION
    if type(version) is int and version != VERSION:
        raise ContractError(
            f"{cls.__name__}.contract_version must be {VERSION}, got {version}: the operator and the trainer's image "
            "must be of one release"
        )
    value, problems = JSON.parse(cls, raw, cls.__name__)
    if ignored is not None and not has_wrong(problems):
        ignored.extend(problem.path for problem in problems)
    elif problems:
        raise ContractError("; ".join(map(str, problems)))
    return value


def _is_versioned(cls: Any) -> bool:
    return any(f.name == "contract_version" for f in dataclasses.fields(cls))
