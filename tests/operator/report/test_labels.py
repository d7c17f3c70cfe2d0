"""What the report says of labels: who made them, how far they agree, what wrong ones leave of accuracy."""

import json
from dataclasses import replace

from builders.some_studies import a_final_evaluation, a_report, a_study, a_summary, a_taught_summary
from study_operator.report.labels import describe_labels
from study_operator.report.page import render_page
from study_operator.report.report import headline, lines_of, render_json
from study_operator.spec.study import Study
from trial_trainer.contract import DatasetSummary, LabelSource, from_json, to_json


def test_a_summary_with_an_audit_is_read_back_and_one_without_too() -> None:
    for summary in (a_taught_summary(), a_summary()):
        assert from_json(DatasetSummary, to_json(summary)) == summary
    earlier = json.loads(to_json(a_summary()))
    del earlier["teacher"], earlier["audit"]
    assert from_json(DatasetSummary, json.dumps(earlier)) == a_summary()


def test_the_labels_are_described_in_sentences() -> None:
    few = "(n = 50, 4 sites, too few for an interval)"
    given = "(95 % interval 84.0 to 94.0, n = 200, 40 sites)"
    tokens = "with 1,800,000 tokens of prompts and 50,000 of answers"
    again = "50 requests were sent again; 50 pages were labelled twice"
    true = "by the given labels a model that is always right would be measured at about"
    assert list(describe_labels(a_taught_summary())) == [
        f"large-1 labelled 1,090 of 1,100 pages (Malformed 6, TimedOut 4), {tokens}; {again}.",
        f"the teacher agrees with given labels in 90.0 % {given}; brand 80.0 % of 50, price 100.0 % of 50.",
        f"the teacher agrees with itself, asked a second time in 97.0 % {few}; price 97.0 % of 50.",
        f"some validation labels are wrong: {true} 93.0 % {given}.",
        f"the teacher contradicts itself: by its second pass no model can be measured above about 98.5 % {few}.",
    ]
    assert list(describe_labels(a_summary())) == []


def test_every_form_of_the_report_tells_of_the_labels() -> None:
    report = a_report(summary=a_taught_summary())
    sentences = [line for line in lines_of(report) if line.startswith("Labels: ")]
    assert len(sentences) == 5
    page = render_page(report)
    assert "<h2>Labels</h2>" in page
    assert "the teacher and given labels agree" in page
    assert "90.0 % (84.0–94.0)" in page
    values = json.loads(json.dumps(render_json(report), allow_nan=False))
    assert values["dataset"]["teacher"]["pages"] == {"Labelled": 1090, "Malformed": 6, "TimedOut": 4}
    assert values["dataset"]["audit"]["agreements"][0]["metric"]["value"] == 0.9
    assert "<h2>Labels</h2>" not in render_page(a_report())


def a_taught_study() -> Study:
    study = a_study()
    return replace(study, data=replace(study.data, labels_from=LabelSource.TEACHER))


def test_rules_are_an_independent_baseline_where_a_teacher_labelled_the_test_set() -> None:
    scores = {
        name: replace(row, hand_labelled=replace(row.hand_labelled, n=0))
        for name, row in a_final_evaluation().predictors.items()
    }
    final_evaluation = replace(a_final_evaluation(), predictors=scores)
    assert "reads the same markup" in headline(a_report(final_evaluation=final_evaluation))
    sentence = headline(a_report(study=a_taught_study(), final_evaluation=final_evaluation))
    assert "the rule extractor" in sentence
    assert "reads the same markup" not in sentence


def test_labels_of_the_teacher_in_the_other_mean_are_said_to_be_its() -> None:
    more = {
        name: replace(row, all_asked=replace(row.all_asked, n=200))
        for name, row in a_final_evaluation().predictors.items()
    }
    report = a_report(study=a_taught_study(), final_evaluation=replace(a_final_evaluation(), predictors=more))
    assert "In the mean of all asked attributes, 60 of 200 labels are the teacher's." in lines_of(report)
