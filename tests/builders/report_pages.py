"""A report's page, read as a browser reads it: tags, what is shown, and the charts' specifications."""

import json
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from builders.some_studies import a_final_evaluation, a_report, a_study, a_summary, a_trial, measured
from study_operator.ledger.trial import TrialState
from study_operator.report.report import Report

VOID = {"meta", "input"}
UNSEEN = {"script", "style"}


class Page(HTMLParser):
    """Collects what a page holds, and checks that its tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        """With the names of their attributes."""
        self.texts: list[str] = []
        """What is shown."""
        self.hidden_texts: list[str] = []
        """Scripts and styles."""
        self.metas: list[Mapping[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        if tag == "meta":
            self.metas.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        place = self.hidden_texts if self.open and self.open[-1] in UNSEEN else self.texts
        place.append(data)

    @property
    def text(self) -> str:
        """All that is shown."""
        return "\n".join(self.texts)

    @property
    def chart_data(self) -> str:
        """The charts' specifications as they stand in the page."""
        (found,) = (text for text in self.hidden_texts if text.startswith('{"config"'))
        return found

    @property
    def charts(self) -> Mapping[str, Any]:
        """The charts' specifications by name, with what they look up of their trials in the rows of their data."""
        charts, trials = json.loads(self.chart_data)["specs"], self.trials
        for chart in charts.values():
            if any("flatten" in transform for transform in chart.get("transform", ())):
                (columns,) = chart["data"]["values"]
                rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
                chart["data"]["values"] = [row | trials[row["trial"]] for row in rows]
        return charts

    @property
    def trials(self) -> Mapping[str, Mapping[str, Any]]:
        """What charts look up of a trial, by its name."""
        return {row["trial"]: row for row in json.loads(self.chart_data)["datasets"]["trials"]}


EVIL = "<script>alert(1)</script>\"' onload='alert(2)' <b>&lt;<!--\u2028</style>"


def a_report_that_holds(text: str) -> Report:
    """Return a report with one text wherever one comes from outside: manifest, cluster, trainer, dataset."""
    study = a_study()
    trials = (
        replace(measured(a_trial(0, arm={"kind": text}), 0.4), message=text),
        measured(measured(a_trial(1, arm={text: 1}), 0.5), 0.6, rung=1),
        a_trial(2, state=TrialState.FAILED, message=text),
    )
    summary = a_summary()
    final_evaluation = a_final_evaluation()
    predictors = {
        name: replace(scores, by_attribute={text: scores.all_asked})
        for name, scores in final_evaluation.predictors.items()
    }
    return a_report(
        study=replace(study, name=text, objective=replace(study.objective, metric=text)),
        stage=text,
        trials=trials,
        message=text,
        adapter=text,
        agreement=(text,),
        final_evaluation=replace(final_evaluation, predictors=predictors),
        summary=replace(
            summary,
            splits={text: summary.splits["train"]},
            skipped_pages={text: 1},
            dropped_labels={text: 2},
            guessed_encodings={text: 3},
            warnings=(text,),
        ),
    )
