"""Builders of studies, ledgers and results, for tests that are about what is said of them."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from study_operator.ledger.trial import Continuation, Measurement, Origin, Trial, TrialState
from study_operator.report.report import Report
from study_operator.spec.metrics import Direction
from study_operator.spec.study import Categorical, Data, LogUniform, Objective, Parameter, Promotion, Storage, Study
from trial_trainer.contract import (
    BaseModel,
    CeilingBasis,
    DatasetSummary,
    ExampleKind,
    ExamplePage,
    ExampleQuestion,
    Examples,
    FinalEvaluation,
    Interval,
    LabelAgreement,
    LabelAudit,
    LabelCeiling,
    LabelOrigin,
    LabelSource,
    Metric,
    PredictorScores,
    Split,
    SplitSummary,
    TeacherSummary,
    TrainerSettings,
)

ARM = {"learning_rate": 0.001, "lora_rank": 16, "batch_size": 8}


def a_study() -> Study:
    """Return a study of eight trials, two promoted, one audited."""
    return Study(
        name="laptop",
        namespace="default",
        uid="0123456789ab",
        objective=Objective(metric="accuracy", direction=Direction.MAXIMIZE),
        parameters=(
            Parameter(name="learning_rate", search_space=LogUniform(min=1e-4, max=1e-2)),
            Parameter(name="batch_size", search_space=Categorical(values=(8, 16), ordered=True)),
        ),
        baseline=ARM,
        num_trials=8,
        parallel_trials=1,
        max_failed_trials=2,
        promotion=Promotion(num_promoted=2, num_audited=1),
        data=Data(source="/pages", attributes=("name", "price"), labels_from=LabelSource.MARKUP, split=Split()),
        base_model=BaseModel(uri="/models/small"),
        trainer=TrainerSettings(epochs=3, max_length_tokens=512),
        storage=Storage(uri="/runs"),
    )


def a_summary() -> DatasetSummary:
    """Return a dataset of 80 training, 40 validation and 140 test pages, four questions each."""
    splits = {
        name: SplitSummary(pages=n, samples=4 * n, sites=n // 2, tokens=400 * n, samples_by_attribute={"price": n})
        for name, n in (("train", 80), ("validation", 40), ("test", 140))
    }
    return DatasetSummary(
        study="laptop",
        splits=splits,
        skipped_pages={"empty": 2},
        dropped_labels={"price": 7},
        pages_of_test_sites=5,
        warnings=("the standard error of brand is 6 points",),
        fingerprint="00ff",
    )


def a_trial(index: int, **changes: object) -> Trial:
    """Return a trial that waits for its first job."""
    origin = Origin.BASELINE if index == 0 else Origin.SUGGESTED
    node = "" if index == 0 else "Sobol"
    return replace(Trial(index=index, arm=ARM, origin=origin, generation_node=node, total_steps=120), **changes)


def measured(trial: Trial, value: float, *, rung: int = 0, diverged: bool = False) -> Trial:
    """Return the trial with one more measurement."""
    measurement = Measurement(
        rung=rung,
        step=24 if rung == 0 else 120,
        value=value,
        standard_error=None if diverged else 0.02,
        n=None if diverged else 160,
        metrics={"validation_loss": 1.5},
        checkpoint="/runs/t/checkpoints/24-a",
        diverged=diverged,
    )
    state = TrialState.PAUSED if rung == 0 else TrialState.COMPLETED
    continuation = Continuation.PROMOTED if rung else trial.continuation
    return replace(trial, measurements=(*trial.measurements, measurement), state=state, continuation=continuation)


def a_final_evaluation(winner: float = 0.52, rules: float = 0.47) -> FinalEvaluation:
    """Return a final evaluation of the trial t002."""
    values = {"winner": winner, "baseline": 0.48, "untrained": 0.02, "rule_based": rules, "constant": 0.2}
    return FinalEvaluation(
        study="laptop",
        winner="t002",
        predictors={name: a_row(value) for name, value in values.items()},
        gains={f"hand_labelled/winner-{name}": a_gain(winner - value) for name, value in values.items()},
        seconds={"winner": 1.0},
    )


def a_row(value: float) -> PredictorScores:
    """Return how one predictor did, the same on every attribute."""
    low, high = max(value - 0.059, 0.0), min(value + 0.059, 1.0)
    metric = Metric(value=value, standard_error=0.03, n=140, sites=60, low=low, high=high)
    attributes: Mapping[str, Metric] = {"name": metric, "price": metric}
    return PredictorScores(
        hand_labelled=metric,
        all_asked=metric,
        by_attribute=attributes,
        invalid_output_rate=metric,
        false_value_rate=metric,
    )


def a_gain(difference: float) -> Interval:
    """Return a paired difference that is known to four points."""
    return Interval(difference=difference, low=difference - 0.04, high=difference + 0.04, n=500, sites=60)


def some_examples(text: str = "") -> Examples:
    """Return a page of which the winner alone knows the price, and one whose text is not known.

    Args:
        text: stands wherever a page, a label or a model says anything.
    """
    price = ExampleQuestion(
        attribute=f"price{text}",
        gold=(f"3.50{text}",),
        answers={"winner": f"3,50 €{text}", "baseline": f"35{text}", "untrained": "", "constant": "none"},
        right=("winner",),
        lines=(2,),
    )
    brand = replace(price, attribute="brand", gold=(), answers={"winner": "none", "baseline": "Smeg"}, lines=())
    page = ExamplePage(
        page=f"p1{text}",
        site="shop1.example",
        kind=ExampleKind.GAINED,
        lines=(f"Kettle{text}", "from Italy", f"only 3.50{text}"),
        lines_in_all=5,
        questions=(price, brand),
    )
    bare = replace(page, page="p2", kind=ExampleKind.BOTH_WRONG, lines=(), lines_in_all=0, questions=(brand,))
    counts = {ExampleKind.GAINED: 4, ExampleKind.LOST: 1, ExampleKind.BOTH_WRONG: 2, ExampleKind.BOTH_RIGHT: 130}
    return Examples(reference="baseline", pages=(page, bare), pages_by_kind=counts, pages_in_all=140)


def a_taught_summary() -> DatasetSummary:
    """Return a dataset whose labels are a teacher's, audited by given labels and by a second pass."""
    given, again = Metric(value=0.9, standard_error=0.02, n=200, sites=40, low=0.84, high=0.94), a_share(0.97)
    teacher, other = LabelOrigin.TEACHER, LabelOrigin.TEACHER_AGAIN
    return replace(
        a_summary(),
        teacher=TeacherSummary(
            endpoint="https://llm.example/v1",
            model="large-1",
            pages={"Labelled": 1090, "Malformed": 6, "TimedOut": 4},
            retries={"RateLimited": 30, "TimedOut": 20},
            pages_again={"Labelled": 50},
            kept_answers=1000,
            prompt_tokens=1_800_000,
            answer_tokens=50_000,
            new_tokens=20_000,
        ),
        audit=LabelAudit(
            agreements=(
                LabelAgreement(one=teacher, other=LabelOrigin.GIVEN, attribute=None, metric=given),
                LabelAgreement(one=teacher, other=LabelOrigin.GIVEN, attribute="brand", metric=a_share(0.8)),
                LabelAgreement(one=teacher, other=LabelOrigin.GIVEN, attribute="price", metric=a_share(1.0)),
                LabelAgreement(one=teacher, other=other, attribute=None, metric=again),
                LabelAgreement(one=teacher, other=other, attribute="price", metric=again),
            ),
            ceilings=(
                LabelCeiling(basis=CeilingBasis.GIVEN_LABELS, attribute=None, metric=replace(given, value=0.93)),
                LabelCeiling(basis=CeilingBasis.GIVEN_LABELS, attribute="brand", metric=a_share(0.86)),
                LabelCeiling(basis=CeilingBasis.SELF_CONSISTENCY, attribute=None, metric=a_share(0.985)),
            ),
        ),
    )


def a_share(value: float) -> Metric:
    """Return a share of 50 labels of so few sites that there is no interval."""
    return Metric(value=value, standard_error=None, n=50, sites=4)


def a_report(**changes: object) -> Report:
    """Return the report of a study that has ended."""
    trials = (
        measured(measured(a_trial(0), 0.40), 0.48, rung=1),
        measured(a_trial(1), 0.21),
        measured(measured(a_trial(2), 0.44), 0.55, rung=1),
        a_trial(3, state=TrialState.ABANDONED, message="out of memory at batch 16"),
    )
    report = Report(
        study=a_study(),
        stage="Completed",
        message="",
        trials=trials,
        winner="t002",
        adapter="/runs/t002/adapter",
        summary=a_summary(),
        final_evaluation=a_final_evaluation(),
        agreement=("Early and final measurements agree on 2 of 3 pairs.",),
        spent_hours=0.5,
        saved_hours=0.25,
        written_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    )
    return replace(report, **changes)
