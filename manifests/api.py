"""The API of FineTuneStudy as an OpenAPI schema with its rules: what `generate.py` makes the CRD and its reference of.

Bounds and defaults are those of `study_operator.limits`, which the parser has too. What the parser checks and a schema
can, is checked here as well, in words for people; `Accepted` tells the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from study_operator import limits, names
from study_operator.limits import Whole
from study_operator.study import (
    ATTRIBUTE,
    DATA_KEY,
    ENDPOINT,
    KNOWN_ATTRIBUTES,
    METRICS,
    NUMBER,
    OBJECT_NAME,
    PARAMETERS,
    REGION,
    STUDY_NAME,
    AddressingStyle,
    CaBundle,
    DeletionPolicy,
    Direction,
)
from study_operator.trial import Continuation, Origin, SearchEnd, StageState, TrialState
from trial_trainer.contract import LabelSource, Precision, SplitBy

Schema = dict[str, Any]

OWNED_WHOLE: Schema = {"x-kubernetes-map-type": "atomic"}

_MUTABLE = "suspend, parallelTrials, numTrials, budget and ttlSecondsAfterFinished"


# --- The kinds of fields ----------------------------------------------------------------------------------------


def text(about: str, longest: int, *, least: int = 0, pattern: str = "", **more: Any) -> Schema:
    """A string of bounded length."""
    schema: Schema = {"description": about, "type": "string", "maxLength": longest}
    if least:
        schema["minLength"] = least
    if pattern:
        schema["pattern"] = f"^{pattern}$"
    return schema | more


def choice(about: str, values: Iterable[str], **more: Any) -> Schema:
    """One of some words."""
    return {"description": about, "type": "string", "enum": [str(value) for value in values]} | more


def whole(about: str, bounds: Whole, **more: Any) -> Schema:
    """A whole number between bounds."""
    schema: Schema = {
        "description": about,
        "type": "integer",
        "format": "int32" if bounds.high <= limits.MAX_INT32 else "int64",
        "minimum": bounds.low,
        "maximum": bounds.high,
    }
    if bounds.default is not None:
        schema["default"] = bounds.default
    return schema | more


def number(about: str, **more: Any) -> Schema:
    """A number that may be fractional, as a string."""
    return text(about, limits.NUMBER_LENGTH, pattern=NUMBER, **more)


def flag(about: str, **more: Any) -> Schema:
    """True or false."""
    return {"description": about, "type": "boolean"} | more


def listing(about: str, items: Schema, most: int, *, least: int = 0, **more: Any) -> Schema:
    """A list of bounded length, owned as a whole."""
    schema: Schema = {"description": about, "type": "array", "maxItems": most, "x-kubernetes-list-type": "atomic"}
    if least:
        schema["minItems"] = least
    return schema | {"items": items} | more


def mapping(about: str, values: Schema, most: int, **more: Any) -> Schema:
    """Values by names that are not fields."""
    return {"description": about, "type": "object", "maxProperties": most, "additionalProperties": values} | more


def fields(about: str, properties: Mapping[str, Schema], required: Sequence[str] = (), **more: Any) -> Schema:
    """An object with named fields."""
    schema: Schema = {"description": about, "type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(required)
    return schema | more


def rule(expression: str, message: str, at: str = "", *, forbids: bool = False) -> Schema:
    """A rule in CEL, with a sentence for people."""
    raw: Schema = {"rule": expression, "message": message}
    if at:
        raw["fieldPath"] = at
    if forbids:
        raw["reason"] = "FieldValueForbidden"
    return raw


def rules(*given: Schema) -> Schema:
    """Several rules, as a schema has them."""
    return {"x-kubernetes-validations": list(given)}


def _say(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}"


def place(about: str, schemes: Sequence[str] = ("s3", "file")) -> Schema:
    """A path, or a URI of one of some schemes."""
    said = " or ".join(f"{scheme}://" for scheme in schemes)
    return text(
        about,
        limits.PLACE_LENGTH,
        least=1,
        **rules(
            rule(
                f"!self.contains('://') || self.matches('^({'|'.join(schemes)})://.*[^/]')",
                f"must be a path or start with {said} and name something",
            )
        ),
    )


def object_name(about: str, **more: Any) -> Schema:
    """The name of a Kubernetes object."""
    return text(about, limits.OBJECT_NAME_LENGTH, least=1, pattern=OBJECT_NAME, **more)


def _template(about: str) -> Schema:
    """A pod template. What is in it the API server's own Job says; equality in rules sees all of it."""
    opaque = {"x-kubernetes-preserve-unknown-fields": True}
    return fields(
        f"{about} It is a PodTemplateSpec of at most 64 KiB as JSON; when the study is accepted the API server is "
        "asked whether it would take Jobs made of it, and the condition Accepted tells what is wrong.",
        {
            "metadata": {"description": "Labels and annotations of the pods, as in any pod template.", **opaque},
            "spec": {
                "description": "The pod, as in any pod template. Where it has containers, one is named trainer: it "
                "runs the trainer, and it is where accelerators are asked for.",
                **opaque,
            },
        },
        **OWNED_WHOLE,
    )


# --- Spec -------------------------------------------------------------------------------------------------------


def _objective() -> Schema:
    metrics = "|".join(name for name in METRICS if name != "accuracy")
    maximized = " || ".join(
        f"self.metric.startsWith('{name}')" for name, way in METRICS.items() if way is Direction.MAXIMIZE
    )
    return fields(
        "What trials are ranked by. Every trial is measured on the same validation pages.",
        {
            "metric": text(
                "The metric of a reading: accuracy (the mean over the asked attributes), accuracy/ and one of the "
                "asked attributes, validation_loss (nats per token), invalid_output_rate or false_value_rate.",
                limits.METRIC_LENGTH,
                default="accuracy",
                **rules(
                    rule(
                        f"self.matches('^(accuracy(/{ATTRIBUTE})?|{metrics})$')",
                        f"must be one of {', '.join(METRICS)}, or accuracy/ and one of the asked attributes",
                    )
                ),
            ),
            "direction": choice(
                "Which way the metric is better. It may be left out: accuracies are maximized, the others minimized.",
                Direction,
            ),
        },
        **rules(
            rule(
                f"!has(self.direction) || self.direction == (({maximized}) ? 'Maximize' : 'Minimize')",
                "must be 'Maximize' for accuracies and 'Minimize' for the other metrics",
                ".direction",
            )
        ),
    )


def _parameters() -> Schema:
    low, high = "The least value, inclusive.", "The greatest value, inclusive."
    ascends = rule("double(self.min) < double(self.max)", "must be greater than min", ".max")
    positive = rule("double(self.min) > 0.0", "must be greater than 0", ".min")
    space = fields(
        "Where values of the parameter lie: one of uniform, logUniform or categorical. Parameters that are whole "
        "numbers are categorical.",
        {
            "uniform": fields(
                "Any number between two bounds.",
                {"min": number(low), "max": number(high)},
                ("min", "max"),
                **rules(ascends),
            ),
            "logUniform": fields(
                "Any number between two positive bounds, even on a logarithmic scale.",
                {"min": number(f"{low} It must be greater than 0."), "max": number(high)},
                ("min", "max"),
                **rules(positive, ascends),
            ),
            "categorical": fields(
                "One of a list of numbers.",
                {
                    "values": listing(
                        "The numbers, each once. Ordered ones ascend.",
                        number("A number in quotes."),
                        limits.VALUES_LENGTH,
                        least=2,
                    ),
                    "ordered": flag(
                        "Whether neighbours in the list are alike, so that it has an order.", default=False
                    ),
                },
                ("values",),
                **rules(
                    rule(
                        "self.values.all(v, self.values.exists_one(w, double(w) == double(v)))",
                        "must be given once, each value",
                        ".values",
                    ),
                    rule(
                        "!self.ordered || self.values.map(v, double(v)).isSorted()",
                        "must ascend, because they are ordered",
                        ".values",
                    ),
                ),
            ),
        },
        **rules(
            rule(
                "[has(self.uniform), has(self.logUniform), has(self.categorical)].exists_one(given, given)",
                "must hold one of uniform, logUniform or categorical",
            )
        ),
    )
    parameter = fields(
        "One searched hyperparameter.",
        {
            "name": choice("Which of the trainer's parameters is searched; each once.", PARAMETERS),
            "searchSpace": space,
        },
        ("name", "searchSpace"),
        **rules(*_ranges()),
    )
    return listing(
        "What is searched: each parameter with its search space. What is not searched has the trainer's own value.",
        parameter,
        limits.PARAMETERS_LENGTH,
        least=1,
        **rules(
            rule("self.all(p, self.exists_one(q, q.name == p.name))", "must name each parameter once"),
            rule(
                "!(self.exists(p, p.name == 'lora_alpha') && self.exists(p, p.name == 'lora_alpha_over_rank'))",
                "must not search lora_alpha and lora_alpha_over_rank together",
            ),
        ),
    )


def _ranges() -> list[Schema]:
    """What the trainer takes for each parameter."""
    made = []
    space = "self.searchSpace"
    wholes = [name for name, takes in PARAMETERS.items() if takes.is_whole]
    listed = ", ".join(f"'{name}'" for name in wholes)
    made.append(
        rule(
            f"!(self.name in [{listed}]) || !(has({space}.uniform) || has({space}.logUniform))",
            f"must be categorical for {_say(wholes)}, because their values are whole numbers",
            ".searchSpace",
        )
    )
    for name, takes in PARAMETERS.items():
        low = f"double(v) {'>' if takes.is_low_open else '>='} {float(takes.low)!r}"
        high = f"double(v) {'<' if takes.is_high_open else '<='} {float(takes.high)!r}"
        is_whole = " && double(v) == math.floor(double(v))".replace("math.floor(double(v))", "double(int(double(v)))")
        holds = f"{low} && {high}{is_whole if takes.is_whole else ''}"
        values = [f"(has({space}.categorical) ? {space}.categorical.values : [])"]
        if not takes.is_whole:
            values += [
                f"(has({space}.{kind}) ? [{space}.{kind}.min, {space}.{kind}.max] : [])"
                for kind in ("uniform", "logUniform")
            ]
        made.append(
            rule(
                f"self.name != '{name}' || ({' + '.join(values)}).all(v, {holds})",
                f"must hold values of {name}: {takes.says()}",
                ".searchSpace",
            )
        )
    return made


def _arm(about: str) -> Schema:
    return mapping(
        about,
        number("The parameter's value, a number in quotes that lies in the parameter's search space."),
        limits.PARAMETERS_LENGTH,
        **OWNED_WHOLE,
    )


def _lies_in(arm: str) -> str:
    """Whether an arm lies in the search space."""
    space, value = "p.searchSpace", f"double({arm}[p.name])"
    within = " && ".join(
        f"(!has({space}.{kind}) || ({value} >= double({space}.{kind}.min) && {value} <= double({space}.{kind}.max)))"
        for kind in ("uniform", "logUniform")
    )
    listed = f"(!has({space}.categorical) || {space}.categorical.values.exists(v, double(v) == {value}))"
    return f"self.parameters.all(p, !(p.name in {arm}) || ({within} && {listed}))"


def _is_complete(arm: str) -> str:
    """Whether an arm has a value of each parameter and of no other."""
    return f"(size({arm}) == size(self.parameters) && self.parameters.all(p, p.name in {arm}))"


def _data() -> Schema:
    known = ", ".join(f"'{name}'" for name in KNOWN_ATTRIBUTES)
    otherwise = f"has(self.testSource) ? 0 : {limits.TEST_PERCENT.default}"
    test_percent = f"has(self.split.testPercent) ? self.split.testPercent : {otherwise}"
    return fields(
        "Where the pages come from, what is asked of them, and how they are split.",
        {
            "source": place(
                "A path on a mounted volume or an s3:// URI: a folder of .html files, or one .jsonl, .jsonl.gz or "
                ".parquet file of pages or of ready samples."
            ),
            "testSource": place(
                "An independent test set of the same form. Its shops are dropped from training and validation, and it "
                "is read once, after the winner is chosen."
            ),
            "attributes": listing(
                "What is asked of each page. With labels from Markup it is some of "
                f"{', '.join(KNOWN_ATTRIBUTES)}; it is left out for ready samples.",
                text("The name of an attribute.", limits.WORD_LENGTH, pattern=ATTRIBUTE),
                limits.ATTRIBUTES_LENGTH,
                **rules(rule("self.all(a, self.exists_one(b, b == a))", "must hold each attribute once")),
            ),
            "labels": fields(
                "Where the right answers come from.",
                {
                    "from": choice(
                        "Markup: the page's own JSON-LD, microdata and Open Graph. Given: labels in the file.",
                        LabelSource,
                        default=str(LabelSource.MARKUP),
                    )
                },
                default={},
            ),
            "split": fields(
                "How pages are divided, in percent of the shops or pages. At least 10 percent stay for training.",
                {
                    "by": choice(
                        "Site: no shop is in two splits. Page: only no page is.", SplitBy, default=str(SplitBy.SITE)
                    ),
                    "validationPercent": whole(
                        "The share by which trials are measured and the winner is chosen.", limits.VALIDATION_PERCENT
                    ),
                    "testPercent": whole(
                        "The share that is read once, at the end. It is 10 where it is not given, and 0 where "
                        "testSource is.",
                        limits.TEST_PERCENT._replace(default=None),
                    ),
                },
                default={},
            ),
            "maxPages": whole(
                "The most pages of each source, drawn by the seed. Else all are taken.", limits.MAX_PAGES
            ),
            "template": _template(
                "The pod that prepares the data. Where it is not given it is that of the trials, without accelerators."
            ),
        },
        ("source",),
        **rules(
            rule(
                f"self.labels.from != 'Markup' || (has(self.attributes) && size(self.attributes) > 0 && "
                f"self.attributes.all(a, a in [{known}]))",
                f"must be some of {', '.join(KNOWN_ATTRIBUTES)} where labels come from Markup",
                ".attributes",
            ),
            rule(
                "!has(self.testSource) || !has(self.split.testPercent) || self.split.testPercent == 0",
                "must be 0 where spec.data.testSource is given",
                ".split.testPercent",
            ),
            rule(
                f"self.split.validationPercent + ({test_percent}) <= {limits.MAX_HELD_OUT_PERCENT}",
                "must leave 10 percent for training beside testPercent",
                ".split.validationPercent",
            ),
        ),
    )


def _trainer() -> Schema:
    return fields(
        "What is trained and how: the same for every trial.",
        {
            "baseModel": fields(
                "The model whose weights stay frozen while adapters are trained beside them.",
                {
                    "uri": place(
                        "A directory on a mounted volume, hf://owner/name or s3://bucket/prefix.", ("hf", "s3", "file")
                    ),
                    "revision": text(
                        "The revision of a model on the hub. Give a commit, so that every trial trains the same model.",
                        limits.REVISION_LENGTH,
                        least=1,
                    ),
                },
                ("uri",),
            ),
            "epochs": whole("The full length: how often each training sample is seen.", limits.EPOCHS),
            "maxLengthTokens": whole(
                "The most tokens of one sample: page, question and answer. Pages are cut to fit.",
                limits.MAX_LENGTH_TOKENS,
            ),
            "precision": choice(
                "The type of the frozen weights and of the matrix products. The loss is always computed in 32 bits.",
                Precision,
                default=str(Precision.BFLOAT16),
            ),
            "targetModules": {
                "description": "Which modules get an adapter: the word AllLinear, or a list of 1 to 100 module names "
                "of the base model, such as [q_proj, v_proj].",
                "x-kubernetes-preserve-unknown-fields": True,
                "default": "AllLinear",
            },
            "rsLora": flag("Whether adapters are scaled by alpha/sqrt(rank) instead of alpha/rank.", default=False),
            "warmupPercent": whole(
                "The share of the full length in which the learning rate rises, where it is not searched.",
                limits.WARMUP_PERCENT,
            ),
            "weightDecay": number(
                "The optimizer's weight decay, from 0 to 1, where it is not searched.",
                default="0",
                **rules(rule("double(self) >= 0.0 && double(self) <= 1.0", "must be from 0 to 1")),
            ),
            "nodes": whole("The nodes of one trial. More than one meet through a headless Service.", limits.NODES),
            "acceleratorsPerNode": whole(
                "The accelerators, and so the processes, of a trial on each node. It is what budgets count; the "
                "template asks for them, as limits, MIG slices or resource claims.",
                limits.ACCELERATORS_PER_NODE,
            ),
            "template": _template(
                "The pods of the trials: image, accelerators, tolerations, volumes. Where it is not given it is the "
                "installation's default."
            ),
        },
        ("baseModel", "epochs"),
    )


def _storage() -> Schema:
    return fields(
        "The bucket prefix of everything that the study writes: dataset, checkpoints, adapters, report.",
        {
            "uri": place(
                "An s3:// URI, or a directory on a mounted volume. Each study writes under a prefix of its own there."
            ),
            "endpoint": text(
                "The http:// or https:// address of an S3-compatible server. Where it is not given it is AWS.",
                limits.ENDPOINT_LENGTH,
                pattern=ENDPOINT,
            ),
            "region": text("The region of the bucket.", limits.REGION_LENGTH, pattern=REGION),
            "addressingStyle": choice(
                "How the bucket's name is put into its URL. Most servers that are not AWS want Path.",
                AddressingStyle,
                default=str(AddressingStyle.AUTO),
            ),
            "caBundle": fields(
                "The certificates that the endpoint is checked with. Else the system's are.",
                {
                    "configMapName": object_name("A ConfigMap of the study's namespace."),
                    "secretName": object_name("A Secret of the study's namespace."),
                    "key": text(
                        "The key of the ConfigMap or Secret that holds the certificates, as PEM.",
                        limits.KEY_LENGTH,
                        pattern=DATA_KEY,
                        default=CaBundle.key,
                    ),
                },
                **rules(
                    rule(
                        "has(self.configMapName) != has(self.secretName)",
                        "must name either a configMapName or a secretName",
                    )
                ),
            ),
            "secretName": object_name(
                "The Secret of the study's namespace with the bucket's credentials. Where it is not given the "
                "operator's own identity is used, if the installation allows it for this namespace and prefix."
            ),
            "deletionPolicy": choice(
                "What becomes of all that the study wrote when the study is deleted.",
                DeletionPolicy,
                default=str(DeletionPolicy.RETAIN),
            ),
        },
        ("uri",),
    )


def _spec() -> Schema:
    promoted = "self.promotion.numPromoted + self.promotion.numAudited + (has(self.baseline) ? 1 : 0)"
    starting = "(has(self.startingArms) ? size(self.startingArms) : 0) + (has(self.baseline) ? 1 : 0)"
    named = "|".join(name for name in METRICS if name != "accuracy")
    term = rf"(?:{NUMBER}(?:\s*\*\s*[a-z_]+)?|[a-z_]+)"
    side = rf"\s*[-+]?\s*{term}(?:\s*[-+]\s*{term})*\s*"
    return fields(
        "What the study is to do. Once it is accepted (condition Accepted) "
        f"only {_MUTABLE} may change; numTrials only upwards.",
        {
            "suspend": flag(
                "While true nothing runs: running trials write a checkpoint and free their accelerators, and go on "
                "from there later.",
                default=False,
            ),
            "objective": _objective(),
            "outcomeConstraints": listing(
                "Bounds on other metrics than the objective's. A trial that breaks one is not promoted.",
                text(
                    "A metric, <= or >=, and a number, such as: invalid_output_rate <= 0.2",
                    limits.CONSTRAINT_LENGTH,
                    **rules(
                        rule(
                            rf"self.matches(r'^\s*(accuracy(/[a-z_]+)?|{named})\s*(<=|>=)\s*{NUMBER}\s*$')",
                            f"must read like 'invalid_output_rate <= 0.2' and bound one of {', '.join(METRICS)}, or "
                            "accuracy/ and one of the asked attributes",
                        )
                    ),
                ),
                limits.OUTCOME_CONSTRAINTS_LENGTH,
            ),
            "parameters": _parameters(),
            "parameterConstraints": listing(
                "Linear constraints that every arm keeps, over parameters whose search space is uniform.",
                text(
                    "A linear inequality, such as: lora_dropout + 2 * weight_decay <= 0.3",
                    limits.CONSTRAINT_LENGTH,
                    **rules(
                        rule(
                            f"self.matches(r'^{side}(<=|>=){side}$')",
                            "must be linear and read like 'lora_dropout + 2 * weight_decay <= 0.3'",
                        )
                    ),
                ),
                limits.PARAMETER_CONSTRAINTS_LENGTH,
            ),
            "baseline": _arm(
                "The arm that everything is compared with: a value of every searched parameter. It always runs to full "
                "length and takes no place of the promoted."
            ),
            "startingArms": listing(
                "Arms to try before the first proposal.",
                _arm("An arm: a value of every searched parameter."),
                limits.STARTING_ARMS_LENGTH,
            ),
            "numTrials": whole(
                "How many arms are tried, baseline and starting arms among them. It may be raised until the first "
                "promotion.",
                limits.NUM_TRIALS,
            ),
            "parallelTrials": whole(
                "How many trials run at once. When it is lowered, running trials go on to their end.",
                limits.PARALLEL_TRIALS,
            ),
            "maxFailedTrials": whole(
                "How many trials may fail by the environment's fault; one more ends the study. Arms that cannot run "
                "(Abandoned) do not count.",
                limits.MAX_FAILED_TRIALS,
            ),
            "seed": whole("The seed of data order, dropout, splits, audits and proposals.", limits.SEED),
            "earlyEvaluation": fields(
                "Where the first rung ends, at which trials are compared.",
                {
                    "checkpointPercent": whole(
                        "The share of its full length, in percent, after which a trial is measured and waits for the "
                        "promotion.",
                        limits.CHECKPOINT_PERCENT,
                    ),
                    "extraPercents": listing(
                        "Further points of the full length, in percent, at which a trial is read on its way.",
                        whole("A point that is no other and not checkpointPercent.", limits.EXTRA_PERCENT),
                        limits.EXTRA_PERCENTS_LENGTH,
                        **rules(rule("self.all(a, self.exists_one(b, b == a))", "must hold each percentage once")),
                    ),
                },
                default={},
                **rules(
                    rule(
                        "!has(self.extraPercents) || !(self.checkpointPercent in self.extraPercents)",
                        "must differ from checkpointPercent",
                        ".extraPercents",
                    )
                ),
            ),
            "promotion": fields(
                "Who continues from the first rung to full length. The baseline always does, and takes no place.",
                {
                    "numPromoted": whole(
                        "How many of the best trials of the first rung continue, from their own checkpoints.",
                        limits.NUM_PROMOTED,
                    ),
                    "numAudited": whole(
                        "How many of the other trials continue too, drawn by the seed, so that it can be told how "
                        "often the first reading was wrong. With 3 or more the report estimates it.",
                        limits.NUM_AUDITED,
                    ),
                },
                default={},
            ),
            "budget": fields(
                "Limits at which the search ends; what is promising is then promoted, and the study completes with the "
                "reason BudgetExhausted.",
                {
                    "acceleratorHours": number(
                        "The accelerator-hours that the study may take, promotions included; more than 0.",
                        **rules(rule("double(self) > 0.0", "must be greater than 0")),
                    ),
                    "activeDeadlineSeconds": whole(
                        "The same in seconds of time with at least one trial running.", limits.ACTIVE_DEADLINE_SECONDS
                    ),
                },
            ),
            "data": _data(),
            "trainer": _trainer(),
            "storage": _storage(),
            "ttlSecondsAfterFinished": whole(
                "How long after the end Jobs, and checkpoints that nobody needs, are kept. Where it is not given they "
                "stay. The study itself always stays.",
                limits.TTL_SECONDS_AFTER_FINISHED,
            ),
        },
        ("objective", "parameters", "numTrials", "data", "trainer", "storage"),
        **rules(
            rule(
                "!self.objective.metric.startsWith('accuracy/') || (has(self.data.attributes) && "
                "self.data.attributes.exists(a, 'accuracy/' + a == self.objective.metric))",
                "must be accuracy/ and one of the asked attributes (spec.data.attributes)",
                ".objective.metric",
            ),
            rule(
                "!has(self.outcomeConstraints) || self.outcomeConstraints.all(c, "
                "c.split('<')[0].split('>')[0].trim() != self.objective.metric)",
                "must bound another metric than the objective",
                ".outcomeConstraints",
            ),
            rule(
                f"!has(self.baseline) || {_is_complete('self.baseline')}",
                "must give a value of each of the study's parameters, and of no other",
                ".baseline",
            ),
            rule(
                f"!has(self.baseline) || {_lies_in('self.baseline')}",
                "must lie in the search space of each parameter",
                ".baseline",
            ),
            rule(
                f"!has(self.startingArms) || self.startingArms.all(arm, {_is_complete('arm')})",
                "must give, each, a value of each of the study's parameters, and of no other",
                ".startingArms",
            ),
            rule(
                f"!has(self.startingArms) || self.startingArms.all(arm, {_lies_in('arm')})",
                "must lie, each, in the search space of each parameter",
                ".startingArms",
            ),
            rule(
                f"self.numTrials >= {starting}",
                "must be at least the number of baseline and starting arms",
                ".numTrials",
            ),
            rule(
                f"self.numTrials >= {promoted}",
                "must be at least the number of promoted and audited trials and the baseline",
                ".numTrials",
            ),
        ),
    )


# --- Status -----------------------------------------------------------------------------------------------------
# Whatever the operator renders must be taken: these bounds are wide, and what is not known is null.

NULL: Schema = {"nullable": True}
COUNT = Whole(0, 2**53)
RUNG = Whole(0, 1)
INDEX = Whole(0, limits.MAX_TRIALS - 1)


def _count(about: str, **more: Any) -> Schema:
    return whole(about, COUNT, **more)


def _number(about: str, **more: Any) -> Schema:
    return text(about, 64, **more)


def _time(about: str, **more: Any) -> Schema:
    return {"description": about, "type": "string", "format": "date-time", "maxLength": 64} | more


def _attempts(about: str, **more: Any) -> Schema:
    attempt = fields(
        "One run of a Job's pod.",
        {
            "rung": whole("The rung that it ran on: 0 up to the early evaluation, 1 to full length.", RUNG),
            "id": text("The name of this run: the pod's UID.", 300),
            "startedAt": _time("When it began."),
            "finishedAt": _time("When it ended; not there while it runs."),
            "exitCode": whole("The exit code of the trainer's container.", Whole(-(2**31), limits.MAX_INT32)),
            "reason": text("How it ended, one word.", 64),
        },
        ("rung", "id", "startedAt"),
    )
    return listing(about, attempt, 2000, **more)


def _earlier(**more: Any) -> Schema:
    return fields(
        "Sums of older attempts, so that a long life takes little room.",
        {
            "attempts": _count("How many there were."),
            "seconds": _number("How long they ran, all together."),
            "firstRungSeconds": _number("How long they ran on the first rung."),
            "rung": whole("The rung of the last of them.", RUNG),
            "faults": _count("How many of that rung the environment ended."),
            "interruptions": _count("How many of that rung were stopped with a checkpoint."),
        },
        ("attempts", "seconds", "firstRungSeconds", "rung", "faults", "interruptions"),
        **more,
    )


def _stage(about: str) -> Schema:
    return fields(
        about,
        {
            "state": choice("Where it stands.", StageState),
            "attempts": _attempts("Its runs.", **NULL),
            "earlierAttempts": _earlier(**NULL),
            "reason": text("Why it failed, one word.", 64, **NULL),
            "message": text("What there is to say of it.", 2_000, **NULL),
        },
        ("state",),
        **NULL,
    )


def _best(about: str) -> Schema:
    return fields(
        about,
        {
            "trial": text("The name of the trial, such as t003.", 16),
            "metric": text("The objective's metric.", 200),
            "direction": choice("Which way the metric is better.", Direction),
            "value": _number("The trial's newest reading."),
            "standardError": _number("Its standard error, clustered by shop.", **NULL),
            "n": _count("What the value is a mean of.", **NULL),
            "rung": whole("The rung of the reading: 0 is the early evaluation, 1 full length.", RUNG),
            "gain": _number("The difference to the baseline on the same rung.", **NULL),
        },
        ("trial", "value", "rung"),
        **NULL,
    )


def _trials() -> Schema:
    measurement = fields(
        "A reading.",
        {
            "rung": whole("The rung that it ended.", RUNG),
            "step": _count("The optimizer step."),
            "value": _number("The objective's metric. A trial that diverged has the worst value."),
            "standardError": _number("Its standard error, clustered by shop."),
            "n": _count("What the value is a mean of."),
            "metrics": mapping("The other metrics, by name.", _number("The metric's value."), 50),
            "checkpoint": text("The key of the checkpoint, under the study's prefix.", 2_000),
            "diverged": flag("Whether the trial diverged."),
        },
        ("rung", "step", "value", "metrics"),
    )
    trial = fields(
        "One arm with all its rungs.",
        {
            "index": whole("The number of the trial: 3 is t003.", INDEX),
            "arm": mapping(
                "The value of each searched parameter.",
                _number("The value, with every digit."),
                limits.PARAMETERS_LENGTH,
            ),
            "origin": choice("Why this arm is in the study.", Origin),
            "generationNode": text("How the optimizer came to it.", 100),
            "state": choice("Where the trial stands.", TrialState),
            "rung": whole("The rung that it is on: 0 up to the early evaluation, 1 to full length.", RUNG),
            "totalSteps": _count("The optimizer steps of its full length."),
            "continuation": choice("Why it goes on to full length; not there where it does not.", Continuation),
            "inclusionProbability": _number("The probability with which it came to be measured at full length."),
            "measurements": listing("What was measured, by rung.", measurement, 2),
            "attempts": _attempts("The runs of its Jobs."),
            "earlierAttempts": _earlier(),
            "message": text("What there is to say of its state.", 300),
        },
        ("index", "arm", "origin", "state", "rung", "totalSteps"),
    )
    return listing("The ledger: every trial, by index.", trial, limits.MAX_TRIALS)


BY_TYPE: Schema = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


def _conditions() -> Schema:
    condition = fields(
        "One thing that is true of the study or not.",
        {
            "type": text(
                "Accepted, StorageReady, Prepared, Suspended, SearchComplete, Complete, Failed or Stalled.", 64
            ),
            "status": choice("Whether it holds.", ("True", "False", "Unknown")),
            "reason": text("Why, one word. That of Complete says where the study is.", 64, least=1),
            "message": text("Why, in sentences.", 16_000),
            "lastTransitionTime": _time("Since when the status is so."),
        },
        ("type", "status", "reason", "message", "lastTransitionTime"),
    )
    return listing(
        "What holds of the study. All conditions are there from the first status on.",
        condition,
        16,
        **BY_TYPE,
    )


def _status() -> Schema:
    states = {str(state)[0].lower() + str(state)[1:]: f"Trials that are {state}." for state in TrialState}
    counts = states | {
        "total": "All trials so far.",
        "measured": "Trials with a reading.",
        "promoted": "Trials that were promoted to full length.",
    }
    progress = fields(
        "How far a running trial is.",
        {
            "trial": text("The name of the trial.", 16),
            "rung": whole("The rung that it is on.", RUNG),
            "step": _count("The optimizer step."),
            "stopStep": _count("The step at which this rung ends."),
            "totalSteps": _count("The steps of its full length."),
            "phase": text("What it does: load, train, evaluate or save.", 64),
            "updatedAt": text("When it said so.", 100),
            "loss": _number("The mean loss of the last ten steps, nats per token."),
            "etaSeconds": _count("How long it may take until the rung ends."),
        },
        ("trial", "rung", "step", "stopStep", "totalSteps", "phase", "updatedAt"),
    )
    missed = fields(
        "An estimate of how many better trials were stopped.",
        {
            "estimate": _number("The estimate."),
            "low": _count("The lower end of its 95 % interval."),
            "high": _count("The upper end of its 95 % interval."),
            "population": _count("How many trials were stopped."),
        },
        **NULL,
    )
    return fields(
        "What became of the study so far. Only the operator writes it.",
        {
            "observedGeneration": {
                "description": "The generation of the spec that this status is about.",
                "type": "integer",
                "format": "int64",
                "minimum": 0,
            },
            "conditions": _conditions(),
            "trialCounts": fields(
                "How many trials there are, by state.", {k: _count(about) for k, about in counts.items()}, **NULL
            ),
            "summary": fields(
                "What kubectl get shows in its columns, rounded.",
                {
                    "best": text("The best reading.", 64, **NULL),
                    "gain": text("Its difference to the baseline.", 64, **NULL),
                    "saved": text("Accelerator-hours saved against full-length runs of every trial.", 64, **NULL),
                },
                **NULL,
            ),
            "best": _best("The best trial so far, and the winner when there is one."),
            "baseline": _best("The baseline's newest reading."),
            "agreement": fields(
                "How well the first reading agrees with that at full length.",
                {
                    "audited": _count("Audited trials that were measured at full length."),
                    "fullLength": _count("All trials that were."),
                    "concordance": _number("The share of pairs that both readings order alike.", **NULL),
                    "pairs": _count("How many pairs there are."),
                    "missedWinners": missed,
                    "topKKept": _number("The share of the best that the promotion kept.", **NULL),
                    "sentences": listing("The same in sentences.", text("A sentence.", 1_000), 20),
                },
                **NULL,
            ),
            "usage": fields(
                "What was spent and what was saved.",
                {
                    "acceleratorHours": _number("Accelerator-hours spent."),
                    "savedAcceleratorHours": _number(
                        "Accelerator-hours saved against full-length runs of every trial."
                    ),
                    "activeSeconds": _number("Time with at least one trial running."),
                },
                **NULL,
            ),
            "search": fields(
                "Why no more arms are proposed; null while they are.",
                {"end": choice("The reason, one word.", SearchEnd), "message": text("The reason in words.", 2_000)},
                **NULL,
            ),
            "winner": whole("The index of the trial that validation chose.", INDEX, **NULL),
            "outcome": fields(
                "How the study ended; null until then.",
                {
                    "failed": flag("Whether it failed."),
                    "reason": text("How it ended, one word.", 64),
                    "message": text("How it ended, in words.", 2_000),
                },
                ("failed", "reason", "message"),
                **NULL,
            ),
            "reportURI": text("Where the report is.", 2_000),
            "reported": fields(
                "Which report was written last.",
                {"key": text("Changes when there is something new to report.", 1_000), "at": _time("When.")},
                ("key", "at"),
                **NULL,
            ),
            "progress": listing("How far the running trials are.", progress, 100, **NULL),
            "dataset": fields(
                "What was prepared.",
                {
                    "fingerprint": text("A digest of the samples.", 200),
                    "trainSamples": _count("Samples to train on."),
                    "validationSamples": _count("Samples that trials are measured with."),
                    "testSamples": _count("Samples of the test set."),
                },
                ("fingerprint", "trainSamples", "validationSamples", "testSamples"),
                **NULL,
            ),
            "prepare": _stage("The Job that prepares the dataset."),
            "judge": _stage("The Job that reads the test set, after the winner was chosen."),
            "foldedAttempts": fields(
                "What is still known of attempts that were folded into sums.",
                {
                    "until": _time("All of them had ended by then."),
                    "activeSeconds": _number("Time before that with at least one trial running."),
                },
                ("until", "activeSeconds"),
                **NULL,
            ),
            "cleanedAt": _time("When the checkpoints that nobody needs were deleted.", **NULL),
            "trials": _trials(),
        },
    )


# --- The kind ---------------------------------------------------------------------------------------------------


def _frozen() -> list[Schema]:
    """What may not change once a study is accepted: rules of the root, which see optional fields come and go."""
    accepted = (
        "has(oldSelf.status) && has(oldSelf.status.conditions) && "
        "oldSelf.status.conditions.exists(c, c.type == 'Accepted' && c.status == 'True')"
    )
    spec = _spec()
    made = []
    for name in spec["properties"]:
        if name in ("suspend", "parallelTrials", "numTrials", "budget", "ttlSecondsAfterFinished"):
            continue
        same = f"self.spec.{name} == oldSelf.spec.{name}"
        if name not in spec["required"] and "default" not in spec["properties"][name]:
            same = f"has(self.spec.{name}) == has(oldSelf.spec.{name}) && (!has(self.spec.{name}) || {same})"
        made.append(
            rule(
                f"!({accepted}) || ({same})",
                f"must not change once the study is accepted: only {_MUTABLE} may. To try another study, give it "
                "another name",
                f".spec.{name}",
                forbids=True,
            )
        )
    made.append(
        rule(
            f"!({accepted}) || self.spec.numTrials >= oldSelf.spec.numTrials",
            "must not be lowered once the study is accepted",
            ".spec.numTrials",
            forbids=True,
        )
    )
    return made


def build_schema() -> Schema:
    """Return the schema of the whole object."""
    return fields(
        "A search for the hyperparameters with which a language model is fine-tuned best. Many arms are trained to a "
        "part of their full length, the best continue to the end, and the winner is judged on a test set that the "
        "search never saw.",
        {
            "apiVersion": {
                "description": "The version of the API: " + names.API_VERSION + ".",
                "type": "string",
            },
            "kind": {"description": "The kind of the object: " + names.KIND + ".", "type": "string"},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": _spec(),
            "status": _status(),
        },
        ("spec",),
        **rules(
            rule(
                f"self.metadata.name.matches('^{STUDY_NAME}$')",
                "must begin with a letter and hold only lower-case letters, digits and inner dashes, because Jobs and "
                "Services are named after it",
                ".metadata.name",
            ),
            rule(
                f"size(self.metadata.name) <= {limits.NAME_LENGTH}",
                f"must have at most {limits.NAME_LENGTH} characters, because Jobs are named after it",
                ".metadata.name",
            ),
            *_frozen(),
        ),
    )


def build_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition."""
    columns = [
        ("Trials", "integer", ".status.trialCounts.total", "Trials so far."),
        ("Measured", "integer", ".status.trialCounts.measured", "Trials with a reading."),
        ("Promoted", "integer", ".status.trialCounts.promoted", "Trials that were promoted to full length."),
        ("Best", "string", ".status.summary.best", "The best reading."),
        ("Gain", "string", ".status.summary.gain", "Its difference to the baseline."),
        ("Saved", "string", ".status.summary.saved", "Accelerator-hours saved against full-length runs."),
        ("Status", "string", '.status.conditions[?(@.type=="Complete")].reason', "Where the study is."),
        ("Age", "date", ".metadata.creationTimestamp", "Time since the study was created."),
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.KIND.lower(),
                "shortNames": ["fts"],
                "categories": ["ml"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "description": about}
                        for name, kind, path, about in columns
                    ],
                    "schema": {"openAPIV3Schema": build_schema()},
                }
            ],
        },
    }
