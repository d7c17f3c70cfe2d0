"""What the operator writes: the status, field by field as `study_operator.ledger.status` renders it.

Whatever the operator renders must be taken, so that bounds are wide here. What is not known is null.
"""

from __future__ import annotations

from typing import Any

from study_api.kinds import NULL, Schema, choice, fields, flag, listing, mapping, text, whole
from study_operator.ledger.trial import (
    ConfirmationsEnd,
    Continuation,
    CurveEnd,
    Origin,
    SearchEnd,
    StageState,
    TrialState,
)
from study_operator.spec import limits
from study_operator.spec.limits import Whole
from study_operator.spec.metrics import Direction
from trial_trainer.codec import LARGEST_COUNT

COUNT = Whole(0, LARGEST_COUNT)
RUNG = Whole(0, limits.RUNGS_LENGTH)
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
            "rung": whole(
                "The rung that it ran on: 0 up to the first early evaluation, the last one to full length.", RUNG
            ),
            "id": text("The name of this run: the pod's UID.", 300),
            "startedAt": _time("When it began."),
            "finishedAt": _time("When it ended; absent while it runs."),
            "exitCode": whole("The exit code of the trainer's container.", Whole(-(2**31), limits.MAX_INT32)),
            "reason": text("How it ended, as one CamelCase word.", 64),
        },
        ("rung", "id", "startedAt"),
    )
    return listing(about, attempt, 2000, **more)


def _earlier(**more: Any) -> Schema:
    return fields(
        "Sums of older attempts, which are not listed one by one, to keep the object small.",
        {
            "attempts": _count("Number of those attempts."),
            "seconds": _number("Their total duration, in seconds."),
            "firstRungSeconds": _number("The part of it on the first rung, in seconds."),
            "rung": whole("The rung of the last of them.", RUNG),
            "faults": _count("Attempts on that rung that ended by the environment's fault."),
            "interruptions": _count("Attempts on that rung that were interrupted after they saved a checkpoint."),
        },
        ("attempts", "seconds", "firstRungSeconds", "rung", "faults", "interruptions"),
        **more,
    )


def _stage(about: str) -> Schema:
    return fields(
        about,
        {
            "state": choice("Where it stands.", StageState),
            "attempts": _attempts("The runs of its Job.", **NULL),
            "earlierAttempts": _earlier(**NULL),
            "reason": text("Why it failed, as one CamelCase word.", 64, **NULL),
            "message": text("Human-readable message.", 2_000, **NULL),
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
            "value": _number("The trial's newest measurement."),
            "standardError": _number("Its standard error, clustered by site.", **NULL),
            "n": _count("The number of questions that the value is a mean of.", **NULL),
            "rung": whole(
                "The rung of the measurement: 0 is the first early evaluation, the last one full length.", RUNG
            ),
            "gain": _number(
                "The gain over the baseline. On validation it is corrected for having chosen the best of many.", **NULL
            ),
            "gainLow": _number("The lower end of its 95 % interval.", **NULL),
            "gainHigh": _number("The upper end of its 95 % interval.", **NULL),
            "gainOn": text(
                "The split that the gain was measured on: Validation, or Test after the final evaluation.", 64, **NULL
            ),
            "gainUncorrected": _number("On validation: the difference of the two measurements, not corrected.", **NULL),
            "bestOf": _count("On validation: the number of arms that this one was chosen from.", **NULL),
            "gainSeeds": _count(
                "The training seeds that the gain is the mean over: 1 is the study's own, more are those of "
                "promotion.confirmSeeds.",
                **NULL,
            ),
        },
        ("trial", "value", "rung"),
        **NULL,
    )


def _trials(about: str, **more: Any) -> Schema:
    measurement = fields(
        "A measurement.",
        {
            "rung": whole("The rung that it ended.", RUNG),
            "step": _count("The optimizer step."),
            "value": _number("The objective's metric. A trial that diverged has the worst value."),
            "standardError": _number("Its standard error, clustered by site."),
            "n": _count("The number of questions that the value is a mean of."),
            "sites": _count("The number of sites of those questions, where it is below 1,000."),
            "metrics": mapping("The other metrics, by name.", _number("The metric's value."), 50),
            "checkpoint": text("The key of the checkpoint, under the study's prefix.", 2_000),
            "diverged": flag(
                "Whether the trial diverged: its loss was not finite, or exploded, and nothing was measured."
            ),
            "gibberish": flag(
                "Whether no answer was right, and half of them or more made no sense: they said nothing, or one thing "
                "again and again."
            ),
            "trainSeconds": _number("The seconds of training up to the first measurement, which scale with steps."),
            "fixedSeconds": _number("The seconds that its last attempt took for everything but training."),
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
            "generationNode": text("The optimizer's generation node that proposed it, such as Sobol or BoTorch.", 100),
            "state": choice("Where the trial stands.", TrialState),
            "rung": whole(
                "The rung that it is on: 0 up to the first early evaluation, the last one to full length.", RUNG
            ),
            "totalSteps": _count("The optimizer steps of its full length."),
            "trainSamples": _count("Of a run of the data curve: the number of training samples that it sees."),
            "seed": _count("Of a confirmation or a run of the data curve: its seed; absent where it is the study's."),
            "repeats": whole("Of a confirmation: the index of the trial whose arm it is.", INDEX),
            "withoutVariants": flag(
                "Of a run of the data curve: whether it reads no variants of training pages, to be compared with one "
                "that does; absent where it reads them as the trials do."
            ),
            "continuation": choice("Why it went on from the rung before; absent on the first one.", Continuation),
            "inclusionProbability": _number("The probability with which it came to be measured at full length."),
            "auditedAt": whole(
                "The early rung at which an audited trial was drawn; absent where it was the first.", RUNG
            ),
            "measurements": listing("What was measured, by rung.", measurement, limits.RUNGS_LENGTH + 1),
            "attempts": _attempts("The runs of its Jobs."),
            "earlierAttempts": _earlier(),
            "message": text("Human-readable message about its state.", 300),
        },
        ("index", "arm", "origin", "state", "rung", "totalSteps"),
    )
    return listing(about, trial, limits.MAX_TRIALS, **more)


def _change(about: str) -> Schema:
    return fields(
        about,
        {
            "difference": _number("The paired difference."),
            "low": _number("The lower end of its 95 % interval; null where there are too few sites.", **NULL),
            "high": _number("The upper end of its 95 % interval; null where there are too few sites.", **NULL),
            "n": _count("The number of questions."),
        },
        ("difference", "n"),
        **NULL,
    )


BY_TYPE: Schema = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


def _conditions() -> Schema:
    condition = fields(
        "One aspect of the study's state.",
        {
            "type": text(
                "Accepted, StorageReady, Prepared, Suspended, SearchComplete, Complete, Failed, JobsRefused, Stalled, "
                "EarlyEvaluationReliable, Overfitting, SearchStagnating.",
                64,
            ),
            "status": choice("Whether it holds.", ("True", "False", "Unknown")),
            "reason": text("Why, as one CamelCase word. That of Complete is the study's stage.", 64, least=1),
            "message": text("Human-readable message.", 16_000),
            "lastTransitionTime": _time("Since when the status is so."),
        },
        ("type", "status", "reason", "message", "lastTransitionTime"),
    )
    return listing(
        "The conditions of the study. All are present from the first status on.",
        condition,
        16,
        **BY_TYPE,
    )


def build_status() -> Schema:
    """Return the schema of the status."""
    states = {str(state)[0].lower() + str(state)[1:]: f"Trials that are {state}." for state in TrialState}
    counts = states | {
        "total": "All trials so far.",
        "measured": "Trials with a measurement.",
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
            "phase": text("Its phase: load, train, evaluate or save.", 64),
            "updatedAt": text("When it was reported.", 100),
            "loss": _number("The mean loss of the last ten steps, nats per token."),
            "etaSeconds": _count("Estimated seconds until the rung ends."),
        },
        ("trial", "rung", "step", "stopStep", "totalSteps", "phase", "updatedAt"),
    )
    missed = fields(
        "An estimate of how many trials were stopped that would have ended better than the best that continued.",
        {
            "estimate": _number("The estimate."),
            "low": _count("The lower end of its 95 % interval."),
            "high": _count("The upper end of its 95 % interval."),
            "population": _count(
                "The number of trials that the audited ones were drawn from: those that were not promoted."
            ),
        },
        **NULL,
    )
    return fields(
        "The observed state of the study, written by the operator alone.",
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
                    "best": text("The best measurement, which is the best of many.", 64, **NULL),
                    "gain": text(
                        "The gain over the baseline with its 95 % interval: on the test set once it was read; "
                        "before, on validation, corrected for being the best of so many arms.",
                        64,
                        **NULL,
                    ),
                    "saved": text(
                        "Accelerator-hours saved against full-length runs of every measured trial.", 64, **NULL
                    ),
                },
                **NULL,
            ),
            "best": _best("The best trial so far, and the winner when there is one."),
            "baseline": _best("The baseline's newest measurement; null where it diverged."),
            "agreement": fields(
                "How well the measurement of the last early rung agrees with that at full length.",
                {
                    "percent": _count("Where that early rung ends, in percent of the full length."),
                    "audited": _count("Audited trials that were measured at full length."),
                    "fullLength": _count("All trials that were and did not diverge."),
                    "concordance": _number("The share of pairs that both measurements order alike.", **NULL),
                    "concordanceLow": _number("The lower end of its 95 % interval.", **NULL),
                    "concordanceHigh": _number("The upper end of its 95 % interval.", **NULL),
                    "pairs": _count("How many pairs there are."),
                    "missedWinners": missed,
                    "topKKept": _number("The share of the best that the promotion kept.", **NULL),
                    "sentences": listing("The same in sentences, of each early rung.", text("A sentence.", 1_000), 20),
                },
                **NULL,
            ),
            "usage": fields(
                "What was spent and what was saved.",
                {
                    "acceleratorHours": _number("Accelerator-hours spent."),
                    "savedAcceleratorHours": _number(
                        "What full-length runs of every measured trial would have cost more: the seconds of training "
                        "that were not trained, less the second start and evaluation of those that continued. Null "
                        "where the trainer tells no seconds of training.",
                        **NULL,
                    ),
                    "activeSeconds": _number("Time with at least one trial running."),
                },
                **NULL,
            ),
            "search": fields(
                "Why no more arms are proposed; null while they are.",
                {
                    "end": choice("The reason, as one CamelCase word.", SearchEnd),
                    "message": text("Human-readable message.", 2_000),
                },
                **NULL,
            ),
            "winner": whole("The index of the trial that validation chose.", INDEX, **NULL),
            "outcome": fields(
                "How the study ended; null until then.",
                {
                    "failed": flag("Whether it failed."),
                    "reason": text("How it ended, as one CamelCase word.", 64),
                    "message": text("Human-readable message.", 2_000),
                },
                ("failed", "reason", "message"),
                **NULL,
            ),
            "reportURI": text("Where the report is.", 2_000),
            "reported": fields(
                "Which report was written last.",
                {
                    "key": text("Digest of what was reported.", 1_000),
                    "at": _time("When it was written."),
                },
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
            "testGain": fields(
                "The winner against the baseline on the test set.",
                {
                    "mean": text("Which mean over attributes it is of: hand_labelled or all_asked.", 64),
                    "difference": _number("The paired difference."),
                    "low": _number("The lower end of its 95 % interval; null where there are too few sites.", **NULL),
                    "high": _number("The upper end of its 95 % interval; null where there are too few sites.", **NULL),
                    "n": _count("The number of questions."),
                    "seeds": _count(
                        "The further training seeds that it is the mean over; null where it is of the winner's own "
                        "run alone.",
                        **NULL,
                    ),
                },
                ("mean", "difference", "n"),
                **NULL,
            ),
            "winnerChange": fields(
                "What became of the winner between its first rung and its end.",
                {
                    "validation": _change("Of its accuracy on validation."),
                    "test": _change("Of its accuracy on the test set."),
                    "loss": _change("Of its loss on validation, in nats per token."),
                    "trainingLossBefore": _number(
                        "The mean training loss of the last steps of the first rung, in nats per token.", **NULL
                    ),
                    "trainingLossAfter": _number("The same of as many steps at its end.", **NULL),
                },
                **NULL,
            ),
            "finalEvaluation": _stage("The Job of the final evaluation, on the test set, after the winner was chosen."),
            "foldedAttempts": fields(
                "Totals of the attempts that are kept as sums only.",
                {
                    "until": _time("All of them had ended by then."),
                    "activeSeconds": _number("Time before that with at least one trial running."),
                },
                ("until", "activeSeconds"),
                **NULL,
            ),
            "cleanedAt": _time("When the checkpoints that nobody needs were deleted.", **NULL),
            "confirmations": _trials(
                "Winner and baseline under further seeds, by index, which goes on where that of the trials ends.",
                **NULL,
            ),
            "confirmationsEnd": fields(
                "Why no more of them begin; null while they do, and where none are asked for.",
                {
                    "end": choice("The reason, as one CamelCase word.", ConfirmationsEnd),
                    "message": text("Human-readable message.", 2_000),
                },
                **NULL,
            ),
            "dataCurve": _trials(
                "The runs of the data curve, by index, which goes on where that of the trials and confirmations ends.",
                **NULL,
            ),
            "dataCurveEnd": fields(
                "Why no more runs of the data curve begin; null while they do, and where none are asked for.",
                {
                    "end": choice("The reason, as one CamelCase word.", CurveEnd),
                    "message": text("Human-readable message.", 2_000),
                },
                **NULL,
            ),
            "trials": _trials("The ledger: every trial, by index."),
        },
    )
