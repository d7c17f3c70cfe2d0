"""Alerts and dashboard: they are what Prometheus can read, and they ask for nothing that the operator does not tell."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from study_operator.cluster.study_metrics import StudyCollector
from study_operator.metrics import Metrics
from testcluster import build
from testcluster.fixtures import FindPrograms

HERE = Path(__file__).parent
FILES = HERE.parents[1] / "charts/finetune-study-operator/files"
ALERTS: Any = yaml.safe_load((FILES / "alerts.yaml").read_text())
DASHBOARD: Any = json.loads((FILES / "dashboard.json").read_text())


def expressions() -> list[str]:
    """Return every query of both."""
    rules = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]
    return rules + [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def known() -> dict[str, set[str]]:
    """Return the labels of every series that the operator tells, by name."""
    metrics = Metrics()
    metrics.registry.register(StudyCollector(list))
    found: dict[str, set[str]] = {"process_cpu_seconds_total": set(), "process_resident_memory_bytes": set()}
    for collector in [*metrics.registry._collector_to_names]:
        names = metrics.registry._collector_to_names[collector]
        labels = {*getattr(collector, "_labelnames", ())}
        found |= dict.fromkeys(names, labels)
    for family in StudyCollector(list).describe():
        found[family.name] = {*family._labelnames}
    return found


def test_promtool_takes_the_alerts_and_each_fires_where_it_must(programs: FindPrograms) -> None:
    promtool = programs(lambda: build.build(build.PROMETHEUS)) / "promtool"
    for arguments in (["check", "rules", FILES / "alerts.yaml"], ["test", "rules", HERE / "alerts.test.yaml"]):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_that_sees_it_fire() -> None:
    tests = yaml.safe_load((HERE / "alerts.test.yaml").read_text())["tests"]
    fires = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fires == {rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]}


@pytest.mark.parametrize("expression", expressions())
def test_a_query_asks_for_series_and_labels_that_the_operator_tells(expression: str) -> None:
    series, target = known(), {"namespace", "pod", "job", "le"}
    used = re.findall(r"\b((?:finetune_study|process)_\w+)(?:\{([^}]*)\})?", expression)
    assert used
    for name, selector in used:
        assert name in series, name
        labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selector))
        assert labels <= series[name] | target, (name, labels)
    for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        wanted = {label.strip() for label in labels.split(",")}
        assert wanted <= set().union(*(series[name] for name, _ in used)) | target
