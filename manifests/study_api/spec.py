"""What people write: the spec, and what the parser checks of it as far as a schema can.

Bounds and defaults are those of `study_operator.spec.limits`, which the parser has too. Sentences are for people and
begin with "must"; `Accepted` tells what only the operator can know.
"""

from __future__ import annotations

from collections.abc import Sequence

from study_api.kinds import (
    OWNED_WHOLE,
    Schema,
    choice,
    fields,
    flag,
    listing,
    mapping,
    number,
    object_name,
    place,
    pod_template,
    rule,
    rules,
    say,
    text,
    whole,
)
from study_operator.spec import limits
from study_operator.spec.fields import ATTRIBUTE, BASE_URL, DATA_KEY, ENDPOINT, NUMBER, REGION, STUDY_NAME
from study_operator.spec.metrics import KNOWN_ATTRIBUTES, METRICS, Direction
from study_operator.spec.parse import PARAMETERS
from study_operator.spec.study import AddressingStyle, CaBundle, CurveArm, DataCurve, DeletionPolicy, RankBy, Teacher
from trial_trainer.contract import AnswerFormat, Edit, LabelSource, MissingLabel, OutOfTokens, Precision, SplitBy

MUTABLE = ("suspend", "parallelTrials", "numTrials", "budget", "ttlSecondsAfterFinished")
"""What may change once a study is accepted; `numTrials` upwards."""


def list_rungs(of: str) -> str:
    """Return an expression for the early rungs of a spec, whichever way they are given."""
    early = f"{of}.earlyEvaluation"
    default = limits.CHECKPOINT_PERCENT.default
    short = f"[has({early}.checkpointPercent) ? {early}.checkpointPercent : {default}]"
    return f"(has({early}.rungs) ? {early}.rungs : {short})"


def _objective() -> Schema:
    metrics = "|".join(name for name in METRICS if name != "accuracy")
    maximized = " || ".join(
        f"self.metric.startsWith('{name}')" for name, way in METRICS.items() if way is Direction.MAXIMIZE
    )
    return fields(
        "What trials are ranked by. Every trial is measured on the same validation set.",
        {
            "metric": text(
                "The metric of a measurement: accuracy (the mean over the asked attributes), accuracy/ and one of the "
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
    ascends = rule(
        f"!({_are_numbers('[self.min, self.max]')}) || double(self.min) < double(self.max)",
        "must be greater than min",
        ".max",
    )
    positive = rule(f"!({_are_numbers('[self.min]')}) || double(self.min) > 0.0", "must be greater than 0", ".min")
    values = _are_numbers("self.values")
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
                        f"!({values}) || self.values.all(v, self.values.exists_one(w, double(w) == double(v)))",
                        "must hold each value once",
                        ".values",
                    ),
                    rule(
                        f"!self.ordered || !({values}) || self.values.map(v, double(v)).isSorted()",
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


def _are_numbers(words: str) -> str:
    """Whether words can be compared as numbers. Where they can't, their own pattern says so, and nothing else need."""
    return f"{words}.all(w, w.matches(r'^{NUMBER}$'))"


def _words_of(space: str, kinds: Sequence[str] = ("uniform", "logUniform", "categorical")) -> str:
    """All words of a search space that must be numbers."""
    words = {kind: f"[{space}.{kind}.min, {space}.{kind}.max]" for kind in ("uniform", "logUniform")}
    words["categorical"] = f"{space}.categorical.values"
    return f"({' + '.join(f'(has({space}.{kind}) ? {words[kind]} : [])' for kind in kinds)})"


def _ranges() -> list[Schema]:
    """What the trainer takes for each parameter."""
    made = []
    space = "self.searchSpace"
    wholes = [name for name, takes in PARAMETERS.items() if takes.is_whole]
    listed = ", ".join(f"'{name}'" for name in wholes)
    made.append(
        rule(
            f"!(self.name in [{listed}]) || !(has({space}.uniform) || has({space}.logUniform))",
            f"must be categorical for {say(wholes, 'or')}, because their values are whole numbers",
            ".searchSpace",
        )
    )
    for name, takes in PARAMETERS.items():
        low = f"double(v) {'>' if takes.is_low_open else '>='} {float(takes.low)!r}"
        high = f"double(v) {'<' if takes.is_high_open else '<='} {float(takes.high)!r}"
        is_whole = " && double(v) == double(int(double(v)))" if takes.is_whole else ""
        words = _words_of(space, ("categorical",)) if takes.is_whole else _words_of(space)
        made.append(
            rule(
                f"self.name != '{name}' || !({_are_numbers(words)}) || {words}.all(v, {low} && {high}{is_whole})",
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


def _can_compare(arms: str) -> str:
    """Whether every number that an arm's place in the search space depends on is one."""
    bounds = _are_numbers(_words_of("p.searchSpace"))
    return f"(self.parameters.all(p, {bounds}) && {arms}.all(arm, arm.all(name, arm[name].matches(r'^{NUMBER}$'))))"


def _is_complete(arm: str) -> str:
    """Whether an arm has a value of each parameter and of no other."""
    return f"(size({arm}) == size(self.parameters) && self.parameters.all(p, p.name in {arm}))"


def _data() -> Schema:
    known = ", ".join(f"'{name}'" for name in KNOWN_ATTRIBUTES)
    otherwise = f"has(self.testSource) ? 0 : {limits.TEST_PERCENT.default}"
    test_percent = f"has(self.split.testPercent) ? self.split.testPercent : {otherwise}"
    return fields(
        "Where the pages or texts come from, what is asked of them, and how they are split.",
        {
            "source": place(
                "A path on a mounted volume or an s3:// URI: a folder of .html files, or one .jsonl, .jsonl.gz or "
                ".parquet file of pages, of texts or of ready samples."
            ),
            "testSource": place(
                "An independent test set of the same form. Its sites are dropped from training and validation, and it "
                "is read once, after the winner is chosen."
            ),
            "attributes": listing(
                "What is asked of each page or text, under names of your own. With labels from Markup it is some of "
                f"{', '.join(KNOWN_ATTRIBUTES)}. Without attributes the source holds ready samples.",
                text("The name of an attribute.", limits.ATTRIBUTE_LENGTH, pattern=ATTRIBUTE),
                limits.ATTRIBUTES_LENGTH,
                **rules(rule("self.all(a, self.exists_one(b, b == a))", "must hold each attribute once")),
            ),
            "labels": fields(
                "Where the right answers come from.",
                {
                    "from": choice(
                        "Markup: the page's own JSON-LD, microdata and Open Graph. Given: labels in the file. Teacher: "
                        "a language model is asked while the data is prepared.",
                        LabelSource,
                        default=str(LabelSource.MARKUP),
                    ),
                    "missing": choice(
                        "What it means that the labels of a page or text leave an attribute out. Unknown: nobody "
                        'looked, and it is not asked there. Absent: it has none, and "none" is the right answer; with '
                        "labels that are Given every record must then have some.",
                        MissingLabel,
                        default=str(MissingLabel.UNKNOWN),
                    ),
                    "teacher": _teacher(),
                },
                default={},
            ),
            "split": fields(
                "How pages and texts are divided, in percent of the sites or pages. At least 10 percent stay for "
                "training.",
                {
                    "by": choice(
                        "Site: no site is in two splits, and every page or text needs one. Page: only no page or text "
                        "is.",
                        SplitBy,
                        default=str(SplitBy.SITE),
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
            "augment": fields(
                "Variants of the training pages and texts. Each epoch reads a page or one of its variants, drawn by "
                "the seed, so that no trial gets longer by them. Validation and test are never varied.",
                {
                    "copies": whole("How many variants of each page or text are made.", limits.VARIANTS),
                    "edits": listing(
                        "What a variant is made by. DropLines and SwapLines change lines that hold no answer. "
                        "ReplaceValues puts values of other training pages in the place of a page's own, wherever they "
                        "stand, and ReformatValues writes prices and dates in another way; the labels follow.",
                        choice("One edit.", Edit),
                        len(Edit),
                        least=1,
                        default=[str(edit) for edit in Edit],
                        **rules(rule("self.all(a, self.exists_one(b, b == a))", "must hold each edit once")),
                    ),
                },
            ),
            "template": pod_template(
                "The pod that prepares the data. Where it is not given it is that of the trials, without accelerators."
            ),
        },
        ("source",),
        **rules(
            rule(
                f"self.labels.from != 'Markup' || !has(self.attributes) || self.attributes.all(a, a in [{known}])",
                f"must be some of {', '.join(KNOWN_ATTRIBUTES)} where labels come from Markup",
                ".attributes",
            ),
            rule(
                "self.labels.missing != 'Absent' || (self.labels.from != 'Markup' && has(self.attributes) && "
                "self.attributes.size() > 0)",
                "must be Unknown unless attributes are asked and their labels are Given or a Teacher's",
                ".labels.missing",
            ),
            rule(
                "self.labels.from != 'Teacher' || has(self.labels.teacher)",
                "must be given where labels come from a Teacher",
                ".labels.teacher",
            ),
            rule(
                "self.labels.from == 'Teacher' || !has(self.labels.teacher)",
                "must not be given unless labels come from a Teacher",
                ".labels.teacher",
            ),
            rule(
                "self.labels.from != 'Teacher' || (has(self.attributes) && self.attributes.size() > 0)",
                "must be Given without attributes: ready samples have their completions",
                ".labels.from",
            ),
            rule(
                "!has(self.augment) || (has(self.attributes) && self.attributes.size() > 0)",
                "must be left out unless attributes are asked",
                ".augment",
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


def _teacher() -> Schema:
    return fields(
        "The language model that labels the pages of training and validation, and those test pages that have no given "
        "labels. A label that the page's text does not bear out is dropped, as any other.",
        {
            "endpoint": text(
                "The base URL of an OpenAI-compatible API, such as https://api.openai.com/v1.",
                limits.ENDPOINT_LENGTH,
                pattern=BASE_URL,
            ),
            "model": text("The name of the model, as the server knows it.", limits.TEACHER_MODEL_LENGTH, least=1),
            "secretName": object_name(
                "The Secret of the study's namespace with the key. Only the pod that prepares the data gets it. Where "
                "it is not given the server is asked without a key."
            ),
            "secretKey": text(
                "The key of the Secret that holds it.",
                limits.KEY_LENGTH,
                pattern=DATA_KEY,
                default=Teacher.secret_key,
            ),
            "answerFormat": choice(
                "How the server is asked for JSON. JSONSchema: by a schema that it enforces. JSONObject: by its "
                "promise of JSON. Text: by the prompt alone, for servers that know neither. Every answer is validated.",
                AnswerFormat,
                default=str(Teacher.answer_format),
            ),
            "instructions": text(
                "What the model is told of the attributes and the task, beside their names.",
                limits.TEACHER_INSTRUCTIONS_LENGTH,
                least=1,
            ),
            "temperature": number(
                "The temperature of the answers, from 0 to 2. Where it is not given none is sent: some models take no "
                "other than their own.",
                **rules(
                    rule(
                        f"!({_are_numbers('[self]')}) || (double(self) >= 0.0 && double(self) <= 2.0)",
                        "must be from 0 to 2",
                    )
                ),
            ),
            "maxAnswerTokens": whole(
                "The most tokens of one answer, those of a model's thoughts included.", limits.TEACHER_MAX_ANSWER_TOKENS
            ),
            "maxTokens": whole(
                "The most tokens of all prompts and answers. What answers that are kept from earlier cost counts, too.",
                limits.TEACHER_MAX_TOKENS,
            ),
            "whenTokensRunOut": choice(
                "What happens at maxTokens. Use: the dataset is made of what is labelled by then. Refuse: the study "
                "fails; the answers are kept.",
                OutOfTokens,
                default=str(Teacher.when_tokens_run_out),
            ),
            "selfConsistencySamples": whole(
                "How many pages, drawn by the seed, are labelled twice, so that the report can say how often the "
                "teacher contradicts itself.",
                limits.TEACHER_SELF_CONSISTENCY_SAMPLES,
            ),
            "parallelRequests": whole("How many requests are under way at once.", limits.TEACHER_PARALLEL_REQUESTS),
            "timeoutSeconds": whole(
                "How long a request waits for the next byte of its answer.", limits.TEACHER_TIMEOUT_SECONDS
            ),
        },
        ("endpoint", "model"),
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
                "The type of the frozen weights and of the matrix products. A CPU that cannot multiply bf16 computes "
                "in fp32, with the weights rounded to bf16. The loss is always computed in 32 bits.",
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
                **rules(
                    rule(
                        f"!({_are_numbers('[self]')}) || (double(self) >= 0.0 && double(self) <= 1.0)",
                        "must be from 0 to 1",
                    )
                ),
            ),
            "nodes": whole("The nodes of one trial. More than one meet through a headless Service.", limits.NODES),
            "acceleratorsPerNode": whole(
                "The accelerators, and so the processes, of a trial on each node. It is what budgets count; the "
                "template asks for them, as limits, MIG slices or resource claims.",
                limits.ACCELERATORS_PER_NODE,
            ),
            "template": pod_template(
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


def build_spec() -> Schema:
    """Return the schema of the spec."""
    early = "(has(self.earlyEvaluation.rungs) ? size(self.earlyEvaluation.rungs) : 1)"
    promoted = f"self.promotion.numPromoted + self.promotion.numAudited * {early} + (has(self.baseline) ? 1 : 0)"
    starting = "(has(self.startingArms) ? size(self.startingArms) : 0) + (has(self.baseline) ? 1 : 0)"
    bounded = "(has(self.outcomeConstraints) ? size(self.outcomeConstraints.filter(c, c.contains('accuracy/'))) : 0)"
    curve = (
        "(has(self.dataCurve) ? size(self.dataCurve.sampleSizes) * self.dataCurve.seeds * "
        "(self.dataCurve.compareAugmentation ? 2 : 1) : 0)"
    )
    extra = f"(2 * self.promotion.confirmSeeds + {curve})"
    named = "|".join(name for name in METRICS if name != "accuracy")
    term = rf"(?:{NUMBER}(?:\s*\*\s*[a-z_]+)?|[a-z_]+)"
    side = rf"\s*[-+]?\s*{term}(?:\s*[-+]\s*{term})*\s*"
    return fields(
        "What the study is to do. Once it is accepted (condition Accepted) "
        f"only {say(MUTABLE, 'and')} may change; numTrials only upwards.",
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
                            rf"self.matches(r'^\s*(accuracy(/{ATTRIBUTE})?|{named})\s*(<=|>=)\s*{NUMBER}\s*$')",
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
                "length and does not count among the promoted."
            ),
            "startingArms": listing(
                "Arms to try before the first proposal.",
                _arm("An arm: a value of every searched parameter."),
                limits.STARTING_ARMS_LENGTH,
            ),
            "typicalArms": whole(
                "How many arms that are known to be good for LoRA are tried after the starting arms: published "
                "settings and the centre of the search space, with the nearest values that the search space allows. 0 "
                f"leaves them out. Where it is not given, up to {limits.DEFAULT_TYPICAL_ARMS}, and at most a quarter "
                "of numTrials. The same arm is not tried twice.",
                limits.TYPICAL_ARMS,
            ),
            "numTrials": whole(
                "How many arms are tried, baseline, starting and typical arms among them. It may be raised until "
                "the first promotion.",
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
            "warmStartFrom": listing(
                "Earlier studies to learn from, with the same objective and at least one parameter in common. The best "
                "arm of each is tried first after typical arms, and counts in numTrials; how much more their "
                "measurements mean here is learnt from those made here.",
                fields(
                    "An earlier study: its name, or where its artifacts are.",
                    {
                        "study": text(
                            "The name of a study of the same namespace. It must have ended: until then this one waits "
                            "before its first arm. What it has measured is read from its status, so that its storage "
                            "does not matter, and copied, so that it may be deleted afterwards.",
                            limits.NAME_LENGTH,
                            least=1,
                            pattern=STUDY_NAME,
                        ),
                        "uri": place(
                            "Where its artifacts are: its storage.uri, its namespace, and its name with the first "
                            "eight characters of its UID, as its report's URI has them. It is read by the job that "
                            "prepares the data, with the storage's credentials."
                        ),
                    },
                    **rules(rule("has(self.study) != has(self.uri)", "must hold either study or uri")),
                ),
                limits.WARM_START_LENGTH,
            ),
            "seed": whole("The seed of data order, dropout, splits, audits and proposals.", limits.SEED),
            "earlyEvaluation": fields(
                "Where the early rungs end, at which trials are compared. Each goes on from its own checkpoint.",
                {
                    "checkpointPercent": whole(
                        "The share of its full length, in percent, after which a trial is measured and waits for the "
                        "promotion. Where neither it nor rungs are given it is "
                        f"{limits.CHECKPOINT_PERCENT.default}.",
                        limits.CHECKPOINT_PERCENT._replace(default=None),
                    ),
                    "rungs": listing(
                        "The same for several early rungs, such as [5, 20]: after each of them the best are promoted "
                        "to the next one, and from the last of them to full length. One rung is what "
                        "checkpointPercent says.",
                        whole("The share of the full length, in percent.", limits.RUNG_PERCENT),
                        limits.RUNGS_LENGTH,
                        least=1,
                        **rules(
                            rule("self.isSorted() && self.all(a, self.exists_one(b, b == a))", "must ascend"),
                        ),
                    ),
                    "extraPercents": listing(
                        "Further points of the full length, in percent, at which a trial is read on its way.",
                        whole("A point that is no other, and at which no rung ends.", limits.EXTRA_PERCENT),
                        limits.EXTRA_PERCENTS_LENGTH,
                        **rules(rule("self.all(a, self.exists_one(b, b == a))", "must hold each percentage once")),
                    ),
                },
                default={},
                **rules(
                    rule(
                        "!has(self.rungs) || !has(self.checkpointPercent)",
                        "must not be given beside rungs, whose short form it is",
                        ".checkpointPercent",
                    ),
                    rule(
                        "!has(self.extraPercents) || !self.extraPercents.exists(p, p in (has(self.rungs) ? self.rungs "
                        ": [has(self.checkpointPercent) ? self.checkpointPercent : "
                        f"{limits.CHECKPOINT_PERCENT.default}]))",
                        "must differ from each rung's",
                        ".extraPercents",
                    ),
                ),
            ),
            "promotion": fields(
                "Which trials continue to full length. The baseline always does, and does not count among them.",
                {
                    "numPromoted": whole(
                        "How many trials continue to full length from their own checkpoints: the best of the last "
                        "early rung.",
                        limits.NUM_PROMOTED,
                    ),
                    "promotedPercents": listing(
                        "For each early rung but the last: how many percent of the trials on it are promoted to the "
                        "next one, rounded up, and never fewer than later promotions and audits need. Where it is not "
                        f"given, {limits.DEFAULT_PROMOTED_PERCENT} each.",
                        whole("How many percent of the trials on that rung.", limits.PROMOTED_PERCENT),
                        limits.RUNGS_LENGTH - 1,
                    ),
                    "rankBy": choice(
                        "What trials are ranked by on early rungs: the study's objective, the answers' loss on the "
                        "validation set, or both, a nat per token counting as 0.1 of the objective; where the "
                        "objective is that loss, it alone counts. The loss may rank better where questions are few, "
                        "or most arms are not right yet. Of equals the lower loss goes first. At full length the "
                        "objective decides.",
                        RankBy,
                        default=str(RankBy.OBJECTIVE),
                    ),
                    "numAudited": whole(
                        "How many of the other trials continue to full length too, from each early rung, drawn by the "
                        "seed, so that it can be told how often the early measurement was wrong. With 3 or more the "
                        "report estimates it.",
                        limits.NUM_AUDITED,
                    ),
                    "confirmSeeds": whole(
                        "Under how many further seeds winner and baseline are trained again to full length, once there "
                        "is a winner: with those after the study's. The test set is read with all of them at once, and "
                        "with 3 or more the gain over the baseline holds for other seeds, too. The runs use what the "
                        "budget has left, and change no winner. It needs a baseline.",
                        limits.CONFIRM_SEEDS,
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
                        **rules(rule(f"!({_are_numbers('[self]')}) || double(self) > 0.0", "must be greater than 0")),
                    ),
                    "activeDeadlineSeconds": whole(
                        "The same in seconds of time with at least one trial running.", limits.ACTIVE_DEADLINE_SECONDS
                    ),
                },
            ),
            "dataCurve": fields(
                "How the objective grows with the training data: once there is a winner, its arm or the baseline's is "
                "trained to full length on parts of the training split, before the test set is read. Each part "
                "contains the smaller ones of its seed, and whole sites are added one after the other. The runs use "
                "what the budget has left, are never candidates, and fail no study.",
                {
                    "sampleSizes": listing(
                        "How many training samples each part has. What the training split does not have, or holds no "
                        "batch, is left out.",
                        whole("A number of training samples.", limits.SAMPLE_SIZE),
                        limits.SAMPLE_SIZES_LENGTH,
                        least=1,
                        **rules(rule("self.isSorted() && self.all(a, self.exists_one(b, b == a))", "must ascend")),
                    ),
                    "seeds": whole(
                        "How many runs there are of each size: with the study's seed and those after it.",
                        limits.CURVE_SEEDS,
                    ),
                    "arm": choice("Which arm is run: the winner's or the baseline's.", CurveArm, default="Winner"),
                    "balanced": flag(
                        "Whether each part takes from all attributes in turn, so that they have as many samples each.",
                        default=False,
                    ),
                    "leastGain": number(
                        "In the objective's unit: the curve is called saturated where doubling the data gains less; "
                        f"more than 0. Where it is not given, {DataCurve.least_gain:g}.",
                        **rules(rule(f"!({_are_numbers('[self]')}) || double(self) > 0.0", "must be greater than 0")),
                    ),
                    "compareAugmentation": flag(
                        "Whether each size and seed is run twice, without the variants of data.augment and with them: "
                        "the report then has both curves and what the variants gain. Otherwise the runs read variants "
                        "where the trials do.",
                        default=False,
                    ),
                },
                ("sampleSizes",),
            ),
            "data": _data(),
            "trainer": _trainer(),
            "storage": _storage(),
            "ttlSecondsAfterFinished": whole(
                "How long a Job that has ended is kept, with its pods and their logs, once its result is in the "
                "ledger. Where it is not given it goes at once, and where a quota leaves no room for the next one, "
                "too. The last lines of its log stay in the bucket, and the study itself always stays.",
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
                f"!has(self.baseline) || !{_can_compare('[self.baseline]')} || {_lies_in('self.baseline')}",
                "must lie in the search space of each parameter",
                ".baseline",
            ),
            rule(
                f"!has(self.startingArms) || self.startingArms.all(arm, {_is_complete('arm')})",
                "must each give a value of each of the study's parameters, and of no other",
                ".startingArms",
            ),
            rule(
                f"!has(self.startingArms) || !{_can_compare('self.startingArms')} || "
                f"self.startingArms.all(arm, {_lies_in('arm')})",
                "must each lie in the search space of each parameter",
                ".startingArms",
            ),
            rule(
                f"self.numTrials >= {starting}",
                "must be at least the number of baseline and starting arms",
                ".numTrials",
            ),
            rule(
                f"self.numTrials >= {promoted}",
                "must be at least the number of promoted trials, of audited ones of each early rung, and the baseline",
                ".numTrials",
            ),
            rule(
                f"!has(self.promotion.promotedPercents) || size(self.promotion.promotedPercents) == {early} - 1",
                "must hold one item for each early rung but the last",
                ".promotion.promotedPercents",
            ),
            rule(
                "self.promotion.confirmSeeds == 0 || has(self.baseline)",
                "must be 0 where there is no baseline",
                ".promotion.confirmSeeds",
            ),
            rule(
                "!has(self.dataCurve) || self.dataCurve.arm != 'Baseline' || has(self.baseline)",
                "must be Winner where there is no baseline",
                ".dataCurve.arm",
            ),
            rule(
                "!has(self.dataCurve) || !self.dataCurve.compareAugmentation || has(self.data.augment)",
                "must be false where there is no data.augment",
                ".dataCurve.compareAugmentation",
            ),
            rule(
                f"(self.numTrials + {extra}) * ({early} + 1) <= {limits.LEDGER_MEASUREMENTS}",
                "must not be so many with so many rungs: (numTrials + confirmations + runs of the data curve) x (early "
                f"rungs + 1) may be {limits.LEDGER_MEASUREMENTS}",
                ".numTrials",
            ),
            rule(
                f"(self.numTrials + {extra}) * (size(self.parameters) + 2 * ({early} + 1) * {bounded}) <= "
                f"{limits.LEDGER_VALUES}",
                "must not be so many with so many constraints on an attribute's accuracy: (numTrials + confirmations + "
                "runs of the data curve) x (parameters + 2 x (early rungs + 1) x such constraints) may be "
                f"{limits.LEDGER_VALUES}",
                ".numTrials",
            ),
        ),
    )
