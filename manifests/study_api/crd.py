"""The kind as a whole: its names, its columns, and what may not change once a study is accepted."""

from __future__ import annotations

from typing import Any

from study_api.kinds import Schema, fields, rule, rules, say
from study_api.spec import MUTABLE, build_spec, list_rungs
from study_api.status import build_status
from study_operator import names
from study_operator.spec import limits
from study_operator.spec.fields import STUDY_NAME


def _frozen() -> list[Schema]:
    """What may not change once a study is accepted: rules of the root, which see optional fields come and go."""
    # A newer operator may refuse what an older one accepted. What was measured stays bound to its spec.
    accepted = (
        "has(oldSelf.status) && ((has(oldSelf.status.conditions) && "
        "oldSelf.status.conditions.exists(c, c.type == 'Accepted' && c.status == 'True')) || "
        "(has(oldSelf.status.trials) && size(oldSelf.status.trials) > 0))"
    )
    spec = build_spec()
    made = []
    for name in spec["properties"]:
        if name in MUTABLE:
            continue
        same = f"self.spec.{name} == oldSelf.spec.{name}"
        if name not in spec["required"] and "default" not in spec["properties"][name]:
            same = f"has(self.spec.{name}) == has(oldSelf.spec.{name}) && (!has(self.spec.{name}) || {same})"
        if name == "earlyEvaluation":
            # What the rungs are may be written in two ways, and the usual one not at all.
            new, old = "self.spec", "oldSelf.spec"
            extra = [f"(has({of}.{name}.extraPercents) ? {of}.{name}.extraPercents : [])" for of in (new, old)]
            same = f"{list_rungs(new)} == {list_rungs(old)} && {' == '.join(extra)}"
        made.append(
            rule(
                f"!({accepted}) || ({same})",
                f"must not change once the study is accepted: only {say(MUTABLE, 'and')} may. To try another study, "
                "give it another name",
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
        "part of their full length, the best continue to the end, and the winner is evaluated on a test set that the "
        "search never saw.",
        {
            "apiVersion": {
                "description": "The version of the API: " + names.API_VERSION + ".",
                "type": "string",
            },
            "kind": {"description": "The kind of the object: " + names.KIND + ".", "type": "string"},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": build_spec(),
            "status": build_status(),
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
            rule(
                "!has(self.spec.warmStartFrom) || self.spec.warmStartFrom.all(e, !has(e.study) || "
                "e.study != self.metadata.name)",
                "must name other studies than this one",
                ".spec.warmStartFrom",
            ),
            *_frozen(),
        ),
    )


def build_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition."""
    columns = [
        ("Trials", "integer", ".status.trialCounts.total", "Trials so far."),
        ("Measured", "integer", ".status.trialCounts.measured", "Trials with a measurement."),
        ("Promoted", "integer", ".status.trialCounts.promoted", "Trials that were promoted to full length."),
        ("Best", "string", ".status.summary.best", "The best measurement, which is the best of many."),
        (
            "Gain",
            "string",
            ".status.summary.gain",
            "The gain over the baseline with its 95 % interval: on test, or corrected for being the best of so many.",
        ),
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
