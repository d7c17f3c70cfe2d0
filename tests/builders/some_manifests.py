"""Builders of manifests: a short one, one with every field, and either with some fields changed."""

import copy
import re
from collections.abc import Mapping
from typing import Any

MANIFEST: dict[str, Any] = {
    "apiVersion": "finetune.study/v1alpha1",
    "kind": "FineTuneStudy",
    "metadata": {"name": "laptop", "labels": {"team": "shop"}},
    "spec": {
        "objective": {"metric": "accuracy", "direction": "Maximize"},
        "parameters": [
            {"name": "learning_rate", "searchSpace": {"logUniform": {"min": "1e-4", "max": "1e-2"}}},
            {"name": "lora_rank", "searchSpace": {"categorical": {"values": ["4", "16", "64"], "ordered": True}}},
            {"name": "weight_decay", "searchSpace": {"uniform": {"min": "0", "max": "0.5"}}},
        ],
        "baseline": {"learning_rate": "1e-3", "lora_rank": "16", "weight_decay": "0.1"},
        "numTrials": 8,
        "earlyEvaluation": {},
        "promotion": {"numPromoted": 2, "numAudited": 1},
        "data": {"source": "pages", "attributes": ["name", "price"], "split": {}},
        "trainer": {"baseModel": {"uri": "hf://owner/small"}, "epochs": 3},
        "storage": {"uri": "s3://bucket/prefix"},
    },
}


FULL_MANIFEST: dict[str, Any] = {
    **MANIFEST,
    "spec": {
        "suspend": False,
        "objective": {"metric": "accuracy/price", "direction": "Maximize"},
        "outcomeConstraints": ["invalid_output_rate <= 0.2"],
        "parameters": [
            {"name": "learning_rate", "searchSpace": {"logUniform": {"min": "1e-4", "max": "1e-2"}}},
            {"name": "lora_rank", "searchSpace": {"categorical": {"values": ["4", "16", "64"], "ordered": True}}},
            {"name": "weight_decay", "searchSpace": {"uniform": {"min": "0", "max": "0.5"}}},
        ],
        "parameterConstraints": ["weight_decay <= 0.4"],
        "baseline": {"learning_rate": "1e-3", "lora_rank": "16", "weight_decay": "0.1"},
        "startingArms": [{"learning_rate": "1e-4", "lora_rank": "4", "weight_decay": "0"}],
        "typicalArms": 1,
        "warmStartFrom": [{"study": "earlier"}, {"uri": "s3://studies/shop/earlier-0a1b2c3d"}],
        "numTrials": 8,
        "parallelTrials": 2,
        "maxFailedTrials": 3,
        "seed": 1,
        "earlyEvaluation": {"rungs": [5, 20], "extraPercents": [10]},
        "promotion": {
            "numPromoted": 2,
            "promotedPercents": [50],
            "rankBy": "Objective",
            "numAudited": 1,
            "confirmSeeds": 3,
        },
        "budget": {"acceleratorHours": "200", "activeDeadlineSeconds": 3600},
        "dataCurve": {
            "sampleSizes": [200, 400],
            "seeds": 2,
            "arm": "Winner",
            "balanced": True,
            "leastGain": "0.02",
            "compareAugmentation": False,
        },
        "data": {
            "source": "s3://shop/pages/",
            "testSource": "s3://shop/audited-pages/",
            "attributes": ["name", "price"],
            "labels": {
                "from": "Teacher",
                "missing": "Unknown",
                "teacher": {
                    "endpoint": "https://llm.example/v1",
                    "model": "large-1",
                    "secretName": "teacher",
                    "secretKey": "key",
                    "answerFormat": "Text",
                    "instructions": "Prices are those of today.",
                    "temperature": "0",
                    "maxAnswerTokens": 512,
                    "maxTokens": 1_000_000,
                    "whenTokensRunOut": "Refuse",
                    "selfConsistencySamples": 50,
                    "parallelRequests": 8,
                    "timeoutSeconds": 60,
                },
            },
            "split": {"by": "Site", "validationPercent": 20, "testPercent": 0},
            "maxPages": 1000,
            "augment": {"copies": 1, "edits": ["DropLines", "SwapLines"]},
            "template": {"metadata": {"labels": {"of": "data"}}, "spec": {"nodeSelector": {"pool": "cpu"}}},
        },
        "trainer": {
            "baseModel": {"uri": "hf://owner/small", "revision": "0123abc"},
            "epochs": 3,
            "maxLengthTokens": 2048,
            "precision": "Float32",
            "targetModules": ["q_proj", "v_proj"],
            "rsLora": True,
            "warmupPercent": 5,
            "weightDecay": "0.01",
            "nodes": 2,
            "acceleratorsPerNode": 4,
            "template": {
                "metadata": {"labels": {"of": "trainer"}},
                "spec": {"containers": [{"name": "trainer", "image": "trainer:1"}], "nodeSelector": {"pool": "gpu"}},
            },
        },
        "storage": {
            "uri": "s3://bucket/prefix",
            "endpoint": "https://minio.example",
            "region": "eu-west-1",
            "addressingStyle": "Path",
            "caBundle": {"configMapName": "certificates", "key": "s3.crt"},
            "secretName": "bucket-credentials",
            "deletionPolicy": "Delete",
        },
        "ttlSecondsAfterFinished": 86_400,
    },
}
"""Every field but `caBundle.secretName`, which excludes another one, is given."""


def a_manifest(changes: Mapping[str, Any] | None = None, of: Mapping[str, Any] = MANIFEST) -> dict[str, Any]:
    """Return a good manifest with some fields changed, by their path; None takes a field away."""
    raw: dict[str, Any] = copy.deepcopy(dict(of))
    for path, value in (changes or {}).items():
        *keys, last = (int(key) if key.isdigit() else key for key in re.findall(r"[^.\[\]]+", path))
        at: Any = raw
        for key in keys:
            at = at[key] if isinstance(at, list) else at.setdefault(key, {})
        if value is None:
            at.pop(last)
        else:
            at[last] = value
    return raw
