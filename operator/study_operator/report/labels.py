"""What is known of a dataset's labels: who made them, how far they agree, and what wrong ones leave of accuracy.

Sentences and rows of a table, made of the summary that preparing wrote; `report.py` and `page.py` show them.
"""

from __future__ import annotations

from collections.abc import Iterator

from trial_trainer.contract import (
    CeilingBasis,
    DatasetSummary,
    LabelAgreement,
    LabelAudit,
    LabelOrigin,
    Metric,
    TeacherSummary,
)

ORIGIN_NAMES = {
    LabelOrigin.GIVEN: "given labels",
    LabelOrigin.MARKUP: "markup",
    LabelOrigin.TEACHER: "the teacher",
    LabelOrigin.TEACHER_AGAIN: "itself, asked a second time",
}
CEILING_NAMES = {
    CeilingBasis.GIVEN_LABELS: "validation accuracy of a model that is always right, by given labels",
    CeilingBasis.SELF_CONSISTENCY: "validation accuracy that no model exceeds, by the second pass",
}


def describe_labels(summary: DatasetSummary) -> Iterator[str]:
    """Yield sentences about the labels, for those who read the result."""
    if summary.teacher is not None:
        yield _describe_teacher(summary.teacher)
    if summary.audit is None:
        return
    for agreement in summary.audit.agreements:
        if agreement.attribute is None:
            yield _describe_agreement(agreement, summary.audit)
    for ceiling in summary.audit.ceilings:
        if ceiling.attribute is None:
            yield _describe_ceiling(ceiling.basis, ceiling.metric)


def label_rows(audit: LabelAudit) -> Iterator[list[str]]:
    """Yield the rows of the audit's table: what is compared, of which attribute, the share, labels and sites."""
    for agreement in audit.agreements:
        subject = f"{ORIGIN_NAMES[agreement.one]} and {ORIGIN_NAMES[agreement.other]} agree"
        yield [subject, agreement.attribute or "mean", *_cells(agreement.metric)]
    for ceiling in audit.ceilings:
        yield [CEILING_NAMES[ceiling.basis], ceiling.attribute or "mean", *_cells(ceiling.metric)]


def _describe_teacher(taught: TeacherSummary) -> str:
    lost = ", ".join(f"{fate} {count}" for fate, count in taught.pages.items() if fate != "Labelled")
    again = sum(taught.retries.values())
    requests = "1 request was" if again == 1 else f"{again} requests were"
    twice = taught.pages_again.get("Labelled", 0)
    return (
        f"{taught.model} labelled {taught.pages.get('Labelled', 0):,} of {sum(taught.pages.values()):,} pages"
        + (f" ({lost})" if lost else "")
        + f", with {taught.prompt_tokens:,} tokens of prompts and {taught.answer_tokens:,} of answers"
        + (f"; {requests} sent again" if again else "")
        + (f"; {twice:,} pages were labelled twice" if twice else "")
        + "."
    )


def _describe_agreement(agreement: LabelAgreement, audit: LabelAudit) -> str:
    each = [
        f"{one.attribute} {_percent(one.metric.value)} of {one.metric.n}"
        for one in audit.agreements
        if (one.one, one.other) == (agreement.one, agreement.other) and one.attribute is not None
    ]
    subject = f"{ORIGIN_NAMES[agreement.one]} agrees with {ORIGIN_NAMES[agreement.other]}"
    return f"{subject} in {_describe_share(agreement.metric)}; {', '.join(each)}."


def _describe_ceiling(basis: CeilingBasis, metric: Metric) -> str:
    match basis:
        case CeilingBasis.GIVEN_LABELS:
            return (
                "some validation labels are wrong: by the given labels a model that is always right would be measured "
                f"at about {_describe_share(metric)}."
            )
        case CeilingBasis.SELF_CONSISTENCY:
            return (
                "the teacher contradicts itself: by its second pass no model can be measured above about "
                f"{_describe_share(metric)}."
            )


def _describe_share(metric: Metric) -> str:
    sites = f", {metric.sites} sites" if metric.sites is not None else ""
    if metric.low is None or metric.high is None:
        return f"{_percent(metric.value)} (n = {metric.n}{sites}, too few for an interval)"
    interval = f"95 % interval {metric.low * 100:.1f} to {metric.high * 100:.1f}"
    return f"{_percent(metric.value)} ({interval}, n = {metric.n}{sites})"


def _cells(metric: Metric) -> list[str]:
    low, high = metric.low, metric.high
    interval = "" if low is None or high is None else f" ({low * 100:.1f}–{high * 100:.1f})"
    return [f"{_percent(metric.value)}{interval}", f"{metric.n:,}", "" if metric.sites is None else f"{metric.sites:,}"]


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
