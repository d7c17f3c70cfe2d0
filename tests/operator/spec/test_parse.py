"""A manifest becomes a study, or the person who wrote it reads every mistake at once, as sentences."""

# ruff: noqa: E501  # sentences stand as they are told

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.some_manifests import FULL_MANIFEST, MANIFEST, a_manifest
from study_operator.errors import StudyInvalidError
from study_operator.spec.constraints import parse_linear_constraint
from study_operator.spec.parse import parse_study
from study_operator.spec.study import (
    CaBundle,
    Categorical,
    CurveArm,
    DataCurve,
    DeletionPolicy,
    LogUniform,
    Objective,
    Teacher,
    Uniform,
)
from trial_trainer.contract import AnswerFormat, Edit, LabelSource, MissingLabel, OutOfTokens

WRONG_MANIFESTS = [
    pytest.param(
        {"apiVersion": "finetune.study/v2"},
        ["`apiVersion` must be 'finetune.study/v1alpha1', got 'finetune.study/v2'"],
        id="another API version",
    ),
    pytest.param({"kind": "Experiment"}, ["`kind` must be 'FineTuneStudy', got 'Experiment'"], id="another kind"),
    pytest.param({"metadata": None}, ["`metadata` must be given: an object"], id="no metadata"),
    pytest.param({"metadata.name": None}, ["`metadata.name` must be given: a string"], id="no name"),
    pytest.param(
        {"metadata.name": "Laptop"},
        ["`metadata.name` must match ^[a-z]([-a-z0-9]*[a-z0-9])?$, got 'Laptop'"],
        id="a name with capitals",
    ),
    pytest.param(
        {"metadata.name": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
        ["`metadata.name` must have at most 40 characters, got 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'"],
        id="a name that is too long",
    ),
    pytest.param({"spec": []}, ["`spec` must be an object, got []"], id="a spec that is a list"),
    pytest.param(
        {"spec.paralelTrials": 4},
        ["`spec.paralelTrials` must not be given, because it is not a field (did you mean parallelTrials?), got 4"],
        id="a field of the spec misspelt",
    ),
    pytest.param(
        {"spec.seed": 1, "spec.seeds": 3},
        ["`spec.seeds` must not be given, because it is not a field, got 3"],
        id="a field that is nearly one that is given",
    ),
    pytest.param(
        {"spec.promotion.confirmSeeds": 11},
        ["`spec.promotion.confirmSeeds` must be a whole number from 0 to 10, got 11"],
        id="too many further seeds",
    ),
    pytest.param(
        {"spec.trainer.quantization": "NF4"},
        ["`spec.trainer.quantization` must not be given, because it is not a field, got 'NF4'"],
        id="quantization, not built yet",
    ),
    pytest.param(
        {"spec.data.labels": {"from": "Pupil"}},
        ["`spec.data.labels.from` must be one of Given, Markup, Teacher, got 'Pupil'"],
        id="labels from nobody",
    ),
    pytest.param(
        {"spec.data.labels": {"from": "given", "missing": "Absent"}, "spec.data.attributes": ["people"]},
        ["`spec.data.labels.from` must be one of Given, Markup, Teacher (did you mean Given?), got 'given'"],
        id="what only follows from a word in another case is not told",
    ),
    pytest.param(
        {"spec.data.labels": {"from": "LLM"}, "spec.data.attributes": ["people"]},
        ["`spec.data.labels.from` must be one of Given, Markup, Teacher, got 'LLM'"],
        id="nor what follows from a word that is none",
    ),
    pytest.param(
        {"spec.storage": {"url": "runs"}},
        [
            "`spec.storage.uri` must be given: a string",
            "`spec.storage.url` must not be given, because it is not a field (did you mean uri?), got 'runs'",
        ],
        id="a field of three letters, misspelt",
    ),
    pytest.param(
        {"spec.data.labels": {"from": "Teacher"}},
        ["`spec.data.labels.teacher` must be given where labels come from a Teacher"],
        id="labels from a teacher that is not named",
    ),
    pytest.param(
        {"spec.data.labels": {"teacher": {"endpoint": "https://llm.example/v1", "model": "large"}}},
        [
            "`spec.data.labels.teacher` must not be given unless labels come from a Teacher, got {'endpoint': 'https://llm.example/v1', 'model': 'large'}"
        ],
        id="a teacher whose labels nobody wants",
    ),
    pytest.param(
        {
            "spec.data.labels": {
                "from": "Teacher",
                "teacher": {
                    "endpoint": "https://me:pw@llm.example/v1",
                    "apiKey": "sk",
                    "temperature": "3",
                    "maxTokens": 0,
                    "answerFormat": "XML",
                },
            }
        },
        [
            "`spec.data.labels.teacher.endpoint` must hold no credentials: the key is for the Secret of secretName, got \"one with '@'\"",
            "`spec.data.labels.teacher.temperature` must be from 0 to 2, got '3'",
            "`spec.data.labels.teacher.model` must be given: a string",
            "`spec.data.labels.teacher.answerFormat` must be one of JSONSchema, JSONObject, Text, got 'XML'",
            "`spec.data.labels.teacher.maxTokens` must be a whole number from 1 to 1000000000000, got 0",
            "`spec.data.labels.teacher.apiKey` must not be given, because it is not a field, got 'sk'",
        ],
        id="a teacher that is wrong in every way",
    ),
    pytest.param(
        {
            "spec.data.labels": {"from": "Teacher", "teacher": {"endpoint": "http://llm/v1", "model": "large"}},
            "spec.data.attributes": [],
        },
        [
            "`spec.data.labels.from` must be Given without attributes: ready samples have their completions, got 'Teacher'"
        ],
        id="a teacher of ready samples",
    ),
    pytest.param(
        {"spec.data.augment": {"copies": 0, "edits": ["DropLines", "Shout", "DropLines"]}},
        [
            "`spec.data.augment.copies` must be a whole number from 1 to 20, got 0",
            f"`spec.data.augment.edits[1]` must be one of {', '.join(Edit)}, got 'Shout'",
            "`spec.data.augment.edits[2]` must be given once, got 'DropLines'",
        ],
        id="wrong variants",
    ),
    pytest.param(
        {"spec.data.augment": {}, "spec.data.attributes": []},
        ["`spec.data.augment` must be left out unless attributes are asked, got {}"],
        id="variants of ready samples",
    ),
    pytest.param(
        {"spec.data.labels": {"missing": "Absent"}},
        [
            "`spec.data.labels.missing` must be Unknown unless attributes are asked and their labels are Given or a Teacher's, got 'Absent'"
        ],
        id="markup whose silence means absence",
    ),
    pytest.param({"spec.objective": None}, ["`spec.objective` must be given: an object"], id="no objective"),
    pytest.param(
        {"spec.objective.metric": "f1"},
        [
            "`spec.objective.metric` must be one of accuracy, validation_loss, invalid_output_rate, false_value_rate, or accuracy/ and one of the asked attributes (name, price), got 'f1'"
        ],
        id="an unknown metric",
    ),
    pytest.param(
        {"spec.objective.metric": "accuracy/brand"},
        [
            "`spec.objective.metric` must be one of accuracy, validation_loss, invalid_output_rate, false_value_rate, or accuracy/ and one of the asked attributes (name, price), got 'accuracy/brand'"
        ],
        id="accuracy of an attribute that is not asked",
    ),
    pytest.param(
        {"spec.objective.metric": "accuracy/"},
        [
            "`spec.objective.metric` must be one of accuracy, validation_loss, invalid_output_rate, false_value_rate, or accuracy/ and one of the asked attributes (name, price), got 'accuracy/'"
        ],
        id="a metric that is half a name",
    ),
    pytest.param(
        {"spec.objective.direction": "Minimize"},
        ["`spec.objective.direction` must be 'Maximize' for accuracy, got 'Minimize'"],
        id="the wrong way for a metric",
    ),
    pytest.param(
        {"spec.objective.direction": "Up"},
        ["`spec.objective.direction` must be one of Maximize, Minimize, 'Maximize' for accuracy, got 'Up'"],
        id="an unknown direction",
    ),
    pytest.param(
        {"spec.outcomeConstraints": ["few invalid outputs"]},
        ["`spec.outcomeConstraints[0]` must read like 'invalid_output_rate <= 0.2', got 'few invalid outputs'"],
        id="a constraint in words",
    ),
    pytest.param(
        {"spec.outcomeConstraints": ["f1 >= 0.5"]},
        ["`spec.outcomeConstraints[0]` must read like 'invalid_output_rate <= 0.2', got 'f1 >= 0.5'"],
        id="a constraint on an unknown metric",
    ),
    pytest.param(
        {"spec.outcomeConstraints": ["accuracy >= 0.5"]},
        ["`spec.outcomeConstraints[0]` must bound another metric than the objective, got 'accuracy >= 0.5'"],
        id="a constraint on the objective",
    ),
    pytest.param({"spec.parameters": []}, ["`spec.parameters` must hold 1 to 20 items, got 0"], id="no parameters"),
    pytest.param(
        {"spec.parameters[1].name": "rank"},
        [
            "`spec.parameters[1].name` must be one of learning_rate, lora_rank, lora_alpha, lora_alpha_over_rank, lora_dropout, batch_size, weight_decay, warmup_percent, got 'rank'"
        ],
        id="an unknown parameter",
    ),
    pytest.param(
        {
            "spec.parameters[1].name": "learning_rate",
            "spec.parameters[1].searchSpace": {"uniform": {"min": "0.1", "max": "0.2"}},
        },
        ["`spec.parameters[1].name` must be given once, got 'learning_rate'"],
        id="a parameter given twice",
    ),
    pytest.param(
        {"spec.parameters[1].name": "lora_alpha_over_rank", "spec.parameters[2].name": "lora_alpha"},
        [
            "`spec.parameters[2].searchSpace.uniform.min` must be a number, greater than 0 and at most 4096, got '0'",
            "`spec.parameters` must not search lora_alpha and lora_alpha_over_rank together, got ['learning_rate', 'lora_alpha_over_rank', 'lora_alpha']",
        ],
        id="alpha twice",
    ),
    pytest.param(
        {
            "spec.parameters[0].searchSpace": {
                "uniform": {"min": "0.1", "max": "0.2"},
                "logUniform": {"min": "0.1", "max": "0.2"},
            }
        },
        [
            "`spec.parameters[0].searchSpace` must hold one of uniform, logUniform or categorical, got ['logUniform', 'uniform']"
        ],
        id="two search spaces",
    ),
    pytest.param(
        {"spec.parameters[0].searchSpace": {"normal": {"mean": "0"}}},
        [
            "`spec.parameters[0].searchSpace` must hold one of uniform, logUniform or categorical, got ['normal']",
            "`spec.parameters[0].searchSpace.normal` must not be given, because it is not a field, got {'mean': '0'}",
        ],
        id="an unknown search space",
    ),
    pytest.param(
        {"spec.parameters[0].searchSpace.logUniform.min": 0.0001},
        ["`spec.parameters[0].searchSpace.logUniform.min` must be a number in quotes, such as '0.0001', got 0.0001"],
        id="a number without quotes",
    ),
    pytest.param(
        {"spec.parameters[0].searchSpace.logUniform.min": "small"},
        ["`spec.parameters[0].searchSpace.logUniform.min` must be a finite number, got 'small'"],
        id="a bound that is no number",
    ),
    pytest.param(
        {"spec.parameters[0].searchSpace.logUniform.max": "1e999"},
        ["`spec.parameters[0].searchSpace.logUniform.max` must be a finite number, got '1e999'"],
        id="a bound that is not finite",
    ),
    pytest.param(
        {"spec.parameters[0].searchSpace.logUniform.max": "0.00100000000000000000000"},
        [
            "`spec.parameters[0].searchSpace.logUniform.max` must have at most 24 characters, got '0.00100000000000000000000'"
        ],
        id="a bound with more digits than a number has",
    ),
    pytest.param(
        {"spec.parameterConstraints": [f"weight_decay <= 0.3{' ' * 182}"]},
        [f"`spec.parameterConstraints[0]` must have at most 200 characters, got 'weight_decay <= 0.3{' ' * 180}…"],
        id="a constraint that is too long",
    ),
    pytest.param(
        {"spec.outcomeConstraints": [f"invalid_output_rate <= 0.2{' ' * 175}"]},
        [f"`spec.outcomeConstraints[0]` must have at most 200 characters, got 'invalid_output_rate <= 0.2{' ' * 173}…"],
        id="an outcome constraint that is too long",
    ),
    pytest.param(
        {"spec.trainer.targetModules": ["q_proj", "q" * 65]},
        [f"`spec.trainer.targetModules[1]` must have at most 64 characters, got '{'q' * 65}'"],
        id="a module whose name is too long",
    ),
    pytest.param(
        {"spec.parameters[0].searchSpace.logUniform.min": "-1e-4"},
        ["`spec.parameters[0].searchSpace.logUniform.min` must be greater than 0, got '-1e-4'"],
        id="a negative bound on a log scale",
    ),
    pytest.param(
        {"spec.parameters[0].searchSpace.logUniform.min": "0.5"},
        ["`spec.parameters[0].searchSpace.logUniform.max` must be greater than min ('0.5'), got '1e-2'"],
        id="bounds in the wrong order",
    ),
    pytest.param(
        {"spec.parameters[0].searchSpace.logUniform.max": "10"},
        ["`spec.parameters[0].searchSpace.logUniform.max` must be a number, greater than 0 and at most 1, got '10'"],
        id="a learning rate above one",
    ),
    pytest.param(
        {"spec.parameters[1].searchSpace": {"uniform": {"min": "4", "max": "64"}}},
        [
            "`spec.parameters[1].searchSpace.uniform` must be categorical: {values: [\"8\", \"16\"]} in its place, because whole numbers are chosen, got {'min': '4', 'max': '64'}"
        ],
        id="a rank that is a range",
    ),
    pytest.param(
        {"spec.parameters[1].searchSpace.categorical.values": ["4", "8.5", "16"]},
        [
            "`spec.parameters[1].searchSpace.categorical.values[1]` must be a whole number, at least 1 and at most 1024, got '8.5'"
        ],
        id="a rank that is not whole",
    ),
    pytest.param(
        {"spec.parameters[1].searchSpace.categorical.values": ["16"]},
        ["`spec.parameters[1].searchSpace.categorical.values` must hold 2 to 50 items, got 1"],
        id="a list of one value",
    ),
    pytest.param(
        {"spec.parameters[1].searchSpace.categorical.values": ["4", "16", "16.0"]},
        ["`spec.parameters[1].searchSpace.categorical.values[2]` must be given once, got '16.0'"],
        id="a value given twice",
    ),
    pytest.param(
        {"spec.parameters[1].searchSpace.categorical.values": ["16", "4"]},
        ["`spec.parameters[1].searchSpace.categorical.values` must ascend, because they are ordered, got ['16', '4']"],
        id="ordered values that fall",
    ),
    pytest.param(
        {"spec.parameters[1].searchSpace.categorical.sorted": True},
        ["`spec.parameters[1].searchSpace.categorical.sorted` must not be given, because it is not a field, got True"],
        id="an unknown field of a search space",
    ),
    pytest.param(
        {"spec.baseline.lora_rank": None},
        ["`spec.baseline.lora_rank` must be given: a number in quotes"],
        id="a baseline that lacks a parameter",
    ),
    pytest.param(
        {"spec.baseline.lora_dropout": "0.1"},
        ["`spec.baseline.lora_dropout` must not be given, because it is not one of the study's parameters, got '0.1'"],
        id="a baseline with a parameter too many",
    ),
    pytest.param(
        {"spec.baseline.learning_rate": "0.1"},
        ["`spec.baseline.learning_rate` must lie in the search space: from 0.0001 to 0.01, got '0.1'"],
        id="a baseline outside of its bounds",
    ),
    pytest.param(
        {"spec.baseline.lora_rank": "5"},
        ["`spec.baseline.lora_rank` must lie in the search space: one of 4, 16, 64, got '5'"],
        id="a baseline outside of the list",
    ),
    pytest.param(
        {"spec.startingArms": [{"learning_rate": "1e-3", "lora_rank": "128", "weight_decay": "0.1"}]},
        ["`spec.startingArms[0].lora_rank` must lie in the search space: one of 4, 16, 64, got '128'"],
        id="a starting arm outside of the list",
    ),
    pytest.param(
        {"spec.parameterConstraints": ["learning_rate <= 0.001"]},
        [
            "`spec.parameterConstraints[0]` must name only parameters whose search space is uniform, got 'learning_rate <= 0.001'"
        ],
        id="a constraint on a log scale",
    ),
    pytest.param(
        {"spec.parameterConstraints": ["weight_decay * weight_decay <= 1"]},
        [
            "`spec.parameterConstraints[0]` must be linear and read like 'lora_dropout + 2 * weight_decay <= 0.3', got 'weight_decay * weight_decay <= 1'"
        ],
        id="a constraint that is not linear",
    ),
    pytest.param(
        {"spec.parameterConstraints": ["2 * weight_decay <= 0.05"]},
        [
            "`spec.baseline` must keep the constraint '2 * weight_decay <= 0.05', got {'learning_rate': 0.001, 'lora_rank': 16, 'weight_decay': 0.1}"
        ],
        id="a baseline that breaks a constraint",
    ),
    pytest.param(
        {"spec.numTrials": None}, ["`spec.numTrials` must be given: a whole number"], id="no number of trials"
    ),
    pytest.param(
        {"spec.numTrials": 501},
        ["`spec.numTrials` must be a whole number from 1 to 500, got 501"],
        id="too many trials",
    ),
    pytest.param(
        {"spec.numTrials": "8"},
        ["`spec.numTrials` must be a whole number from 1 to 500, got '8'"],
        id="a number of trials in quotes",
    ),
    pytest.param(
        {"spec.numTrials": 2},
        ["`spec.numTrials` must be at least 4 (2 promoted + 1 audited + the baseline), got 2"],
        id="fewer trials than must run to the end",
    ),
    pytest.param(
        {"spec.parallelTrials": 0},
        ["`spec.parallelTrials` must be a whole number from 1 to 100, got 0"],
        id="no parallel trials",
    ),
    pytest.param(
        {"spec.seed": -1}, ["`spec.seed` must be a whole number from 0 to 2147483647, got -1"], id="a negative seed"
    ),
    pytest.param({"spec.suspend": "no"}, ["`spec.suspend` must be true or false, got 'no'"], id="suspend in words"),
    pytest.param(
        {"spec.earlyEvaluation.checkpointPercent": 100},
        ["`spec.earlyEvaluation.checkpointPercent` must be a whole number from 1 to 99, got 100"],
        id="an early evaluation at the end",
    ),
    pytest.param(
        {"spec.earlyEvaluation.extraPercents": [20]},
        ["`spec.earlyEvaluation.extraPercents[0]` must be given once and differ from each rung's, got 20"],
        id="an extra evaluation at the checkpoint",
    ),
    pytest.param(
        {"spec.promotion.rankBy": "Accuracy"},
        ["`spec.promotion.rankBy` must be one of Objective, ValidationLoss, ObjectiveAndLoss, got 'Accuracy'"],
        id="an unknown way to rank",
    ),
    pytest.param(
        {
            "spec.warmStartFrom": [
                {"uri": "s3://studies/shop/first-0a1b2c3d"},
                {"uri": "s3://studies/shop/first-0a1b2c3d/"},
            ]
        },
        ["`spec.warmStartFrom[1].uri` must be given once, got 's3://studies/shop/first-0a1b2c3d/'"],
        id="an earlier study's prefix twice",
    ),
    pytest.param(
        {"spec.warmStartFrom": [{"study": "first"}, {"study": "first"}]},
        ["`spec.warmStartFrom[1].study` must be given once, got 'first'"],
        id="an earlier study twice",
    ),
    pytest.param(
        {"spec.warmStartFrom": [{}, {"study": "first", "uri": "s3://studies/shop/first-0a1b2c3d"}]},
        [
            "`spec.warmStartFrom[0]` must hold either study or uri, got []",
            "`spec.warmStartFrom[1]` must hold either study or uri, got ['study', 'uri']",
        ],
        id="neither or both",
    ),
    pytest.param(
        {"spec.warmStartFrom": [{"study": "laptop"}, {"study": "../other"}]},
        [
            "`spec.warmStartFrom[0].study` must name another study than this one, got 'laptop'",
            "`spec.warmStartFrom[1].study` must match ^[a-z]([-a-z0-9]*[a-z0-9])?$, got '../other'",
        ],
        id="itself, and no name",
    ),
    pytest.param(
        {"spec.typicalArms": 5},
        ["`spec.typicalArms` must be a whole number from 0 to 4, got 5"],
        id="more typical arms than are known",
    ),
    pytest.param(
        {"spec.earlyEvaluation": {"checkpointPercent": 20, "rungs": [5, 20]}},
        ["`spec.earlyEvaluation.checkpointPercent` must not be given beside rungs, whose short form it is, got 20"],
        id="rungs and their short form",
    ),
    pytest.param(
        {"spec.earlyEvaluation": {"rungs": [20, 5]}},
        ["`spec.earlyEvaluation.rungs` must ascend, got [20, 5]"],
        id="rungs that descend",
    ),
    pytest.param(
        {"spec.earlyEvaluation": {"rungs": [5, 5]}},
        ["`spec.earlyEvaluation.rungs` must ascend, got [5, 5]"],
        id="a rung twice",
    ),
    pytest.param(
        {"spec.earlyEvaluation": {"rungs": []}},
        ["`spec.earlyEvaluation.rungs` must hold 1 to 4 items, got 0"],
        id="no rungs",
    ),
    pytest.param(
        {"spec.earlyEvaluation": {"rungs": [5, 100]}},
        ["`spec.earlyEvaluation.rungs[1]` must be a whole number from 1 to 99, got 100"],
        id="an early rung at full length",
    ),
    pytest.param(
        {"spec.earlyEvaluation": {"rungs": [5, 20], "extraPercents": [5]}},
        ["`spec.earlyEvaluation.extraPercents[0]` must be given once and differ from each rung's, got 5"],
        id="an extra evaluation at a rung",
    ),
    pytest.param(
        {"spec.promotion.promotedPercents": [50]},
        [
            "`spec.promotion.promotedPercents` must hold one item for each early rung but the last, which makes 0, got [50]"
        ],
        id="a share of the only early rung",
    ),
    pytest.param(
        {"spec.earlyEvaluation": {"rungs": [5, 20]}, "spec.promotion.promotedPercents": [0]},
        ["`spec.promotion.promotedPercents[0]` must be a whole number from 1 to 100, got 0"],
        id="a share of nobody",
    ),
    pytest.param(
        {
            "spec.earlyEvaluation": {"rungs": [5, 20]},
            "spec.promotion": {"numPromoted": 2, "numAudited": 2},
            "spec.numTrials": 6,
        },
        ["`spec.numTrials` must be at least 7 (2 promoted + 2 audited × 2 early rungs + the baseline), got 6"],
        id="fewer trials than all early rungs pass on",
    ),
    pytest.param(
        {"spec.earlyEvaluation": {"rungs": [5, 20]}, "spec.numTrials": 334},
        ["`spec.numTrials` must be at most 333 with 2 early rungs, got 334"],
        id="more measurements than a status holds",
    ),
    pytest.param(
        {"spec.promotion.numPromoted": 0},
        ["`spec.promotion.numPromoted` must be a whole number from 1 to 500, got 0"],
        id="nobody promoted",
    ),
    pytest.param(
        {"spec.budget": {"acceleratorHours": "0"}},
        ["`spec.budget.acceleratorHours` must be greater than 0, got '0'"],
        id="a budget of nothing",
    ),
    pytest.param(
        {"spec.budget": {"acceleratorHours": 200}},
        ["`spec.budget.acceleratorHours` must be a number in quotes, such as '200', got 200"],
        id="a budget without quotes",
    ),
    pytest.param(
        {"spec.budget": {"activeDeadlineSeconds": 0.5}},
        ["`spec.budget.activeDeadlineSeconds` must be a whole number from 1 to 2147483647, got 0.5"],
        id="a deadline of half a second",
    ),
    pytest.param({"spec.data.source": None}, ["`spec.data.source` must be given: a string"], id="no source"),
    pytest.param(
        {"spec.data.source": "https://shop.example/pages"},
        [
            "`spec.data.source` must be a path or start with s3:// or file:// and name something, got 'https://shop.example/pages'"
        ],
        id="a source that is a web site",
    ),
    pytest.param(
        {"spec.data.attributes": ["price", "colour"]},
        [
            "`spec.data.attributes` must be some of name, price, currency, brand, sku, availability, rating, description where labels come from Markup, got ['colour']"
        ],
        id="an attribute that markup does not have",
    ),
    pytest.param(
        {"spec.data.attributes": ["price", "price"]},
        ["`spec.data.attributes[1]` must be given once, got 'price'"],
        id="an attribute asked twice",
    ),
    pytest.param(
        {"spec.data.testSource": "tests", "spec.data.split.testPercent": 10},
        ["`spec.data.split.testPercent` must be 0 where spec.data.testSource is given, got 10"],
        id="two test sets",
    ),
    pytest.param(
        {"spec.data.split.validationPercent": 85, "spec.data.split.testPercent": 10},
        ["`spec.data.split.validationPercent` must leave 10 percent for training beside testPercent (10), got 85"],
        id="nothing left to train on",
    ),
    pytest.param(
        {"spec.data.split.by": "Shop"},
        ["`spec.data.split.by` must be one of Site, Page, got 'Shop'"],
        id="an unknown way to split",
    ),
    pytest.param(
        {"spec.trainer.baseModel": None}, ["`spec.trainer.baseModel` must be given: an object"], id="no base model"
    ),
    pytest.param(
        {"spec.trainer.baseModel.uri": "https://models.example/small"},
        [
            "`spec.trainer.baseModel.uri` must be a path or start with hf:// or s3:// or file:// and name something, got 'https://models.example/small'"
        ],
        id="a base model from the web",
    ),
    pytest.param(
        {"spec.trainer.epochs": 0},
        ["`spec.trainer.epochs` must be a whole number from 1 to 10000, got 0"],
        id="no epochs",
    ),
    pytest.param(
        {"spec.trainer.precision": "Float16"},
        ["`spec.trainer.precision` must be one of BFloat16, Float32 (did you mean BFloat16?), got 'Float16'"],
        id="an unknown precision",
    ),
    pytest.param(
        {"spec.trainer.targetModules": "q_proj"},
        ["`spec.trainer.targetModules` must be 'AllLinear' or a list of names, got 'q_proj'"],
        id="target modules that are no list",
    ),
    pytest.param(
        {"spec.trainer.targetModules": []},
        ["`spec.trainer.targetModules` must be 'AllLinear' or a list of at least one name, got []"],
        id="no target modules",
    ),
    pytest.param(
        {"spec.trainer.weightDecay": "2"},
        ["`spec.trainer.weightDecay` must be from 0 to 1, got '2'"],
        id="a weight decay above one",
    ),
    pytest.param(
        {"spec.trainer.warmupPercent": 101},
        ["`spec.trainer.warmupPercent` must be a whole number from 0 to 100, got 101"],
        id="a warm-up of more than everything",
    ),
    pytest.param(
        {"spec.trainer.acceleratorsPerNode": 0},
        ["`spec.trainer.acceleratorsPerNode` must be a whole number from 1 to 64, got 0"],
        id="no accelerators",
    ),
    pytest.param({"spec.storage": None}, ["`spec.storage` must be given: an object"], id="no storage"),
    pytest.param(
        {"spec.storage.uri": "s3://"},
        ["`spec.storage.uri` must be a path or start with s3:// or file:// and name something, got 's3://'"],
        id="a bucket without a name",
    ),
    pytest.param(
        {"spec.storage.endpoint": "https://user:secret@minio.example"},
        [
            (
                "`spec.storage.endpoint` must hold no credentials: those are for the Secret of secretName, "
                "got \"one with '@'\""
            )
        ],
        id="an endpoint with a password",
    ),
    pytest.param(
        {"spec.trainer.baseModel.uri": "javascript:alert(1)"},
        [
            (
                "`spec.trainer.baseModel.uri` must be a path or start with hf:// or s3:// or file:// and name something, "
                "got 'javascript:alert(1)'"
            )
        ],
        id="a model of another kind of URI",
    ),
    pytest.param(
        {"spec.storage.endpoint": "minio.example"},
        ["`spec.storage.endpoint` must match ^https?://[^/\\s@?#]+/?$, got 'minio.example'"],
        id="an endpoint that is no URL",
    ),
    pytest.param(
        {"spec.storage.addressingStyle": "path"},
        ["`spec.storage.addressingStyle` must be one of Auto, Path, Virtual (did you mean Path?), got 'path'"],
        id="an unknown addressing style",
    ),
    pytest.param(
        {"spec.storage.deletionPolicy": "Keep"},
        ["`spec.storage.deletionPolicy` must be one of Retain, Delete, got 'Keep'"],
        id="an unknown deletion policy",
    ),
    pytest.param(
        {"spec.storage.secretName": "Bucket_Credentials"},
        [
            "`spec.storage.secretName` must match ^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$, got 'Bucket_Credentials'"
        ],
        id="a Secret whose name no Secret can have",
    ),
    pytest.param(
        {"spec.storage.caBundle": {"key": "ca.crt"}},
        ["`spec.storage.caBundle` must name either a configMapName or a secretName, got ['key']"],
        id="certificates from nowhere",
    ),
    pytest.param(
        {"spec.storage.caBundle": {"configMapName": "a", "secretName": "b"}},
        [
            "`spec.storage.caBundle` must name either a configMapName or a secretName, got ['configMapName', 'secretName']"
        ],
        id="certificates from two places",
    ),
    pytest.param(
        {"spec.storage.caBundle": {"configMapName": "a", "key": "a/b"}},
        ["`spec.storage.caBundle.key` must match ^[-._a-zA-Z0-9]+$, got 'a/b'"],
        id="a key that is a path",
    ),
    pytest.param(
        {"spec.trainer.nodes": 65},
        ["`spec.trainer.nodes` must be a whole number from 1 to 64, got 65"],
        id="too many nodes",
    ),
    pytest.param(
        {"spec.trainer.template": "trainer:latest"},
        ["`spec.trainer.template` must be an object, got 'trainer:latest'"],
        id="a template that is an image",
    ),
    pytest.param(
        {"spec.trainer.template": {"kind": "Pod"}},
        ["`spec.trainer.template.kind` must not be given, because it is not a field, got 'Pod'"],
        id="a template that is a whole object",
    ),
    pytest.param(
        {"spec.trainer.template": {"spec": {"containers": [{"name": "main"}, {"image": "i"}, "x"]}}},
        ["`spec.trainer.template.spec.containers` must hold one that is named 'trainer', got ['main', None, None]"],
        id="a template without the trainer's container",
    ),
    pytest.param(
        {"spec.data.template": {"spec": {"containers": {"name": "trainer"}}}},
        ["`spec.data.template.spec.containers` must be a list, got {'name': 'trainer'}"],
        id="containers that are no list",
    ),
    pytest.param(
        {"spec.trainer.template": {"metadata": {"annotations": {"note": "é" * 40_000}}}},
        ["`spec.trainer.template` must have at most 10240 bytes as JSON, got 80040"],
        id="a template that is too large",
    ),
    pytest.param(
        {"spec.dataCurve": {}},
        ["`spec.dataCurve.sampleSizes` must be given: a list"],
        id="a data curve of no sizes",
    ),
    pytest.param(
        {
            "spec.dataCurve": {
                "sampleSizes": [400, 200, 0, "many"],
                "seeds": 11,
                "arm": "Best",
                "balanced": "yes",
                "leastGain": "0",
                "compareAugmentation": "yes",
            }
        },
        [
            "`spec.dataCurve.sampleSizes[2]` must be a whole number from 1 to 1000000000, got 0",
            "`spec.dataCurve.sampleSizes[3]` must be a whole number from 1 to 1000000000, got 'many'",
            "`spec.dataCurve.sampleSizes` must ascend, got [400, 200]",
            "`spec.dataCurve.leastGain` must be greater than 0, got '0'",
            "`spec.dataCurve.seeds` must be a whole number from 1 to 10, got 11",
            "`spec.dataCurve.arm` must be one of Winner, Baseline, got 'Best'",
            "`spec.dataCurve.balanced` must be true or false, got 'yes'",
            "`spec.dataCurve.compareAugmentation` must be true or false, got 'yes'",
        ],
        id="a data curve that is wrong all over",
    ),
    pytest.param(
        {"spec.dataCurve": {"sampleSizes": [200, 200]}},
        ["`spec.dataCurve.sampleSizes` must ascend, got [200, 200]"],
        id="a size twice",
    ),
    pytest.param(
        {"spec.dataCurve": {"sampleSizes": [200], "arm": "Baseline"}, "spec.baseline": None},
        ["`spec.dataCurve.arm` must be 'Winner' where there is no spec.baseline, got 'Baseline'"],
        id="the curve of a baseline that is not given",
    ),
    pytest.param(
        {"spec.dataCurve": {"sampleSizes": list(range(1, 21)), "seeds": 10}, "spec.numTrials": 301},
        ["`spec.numTrials` must be at most 300 with 1 early rungs, beside 200 further runs, got 301"],
        id="more trials and runs than a status holds",
    ),
    pytest.param(
        {"spec.promotion.confirmSeeds": 1, "spec.baseline": None},
        ["`spec.promotion.confirmSeeds` must be 0 where there is no spec.baseline, got 1"],
        id="a gain over a baseline that is not given",
    ),
    pytest.param(
        {"spec.dataCurve": {"sampleSizes": [200], "compareAugmentation": True}},
        ["`spec.dataCurve.compareAugmentation` must be false where there is no spec.data.augment, got True"],
        id="a comparison with variants that are not made",
    ),
    pytest.param(
        {
            "spec.dataCurve": {"sampleSizes": list(range(1, 21)), "seeds": 10, "compareAugmentation": True},
            "spec.data.augment": {},
            "spec.numTrials": 101,
        },
        ["`spec.numTrials` must be at most 100 with 1 early rungs, beside 400 further runs, got 101"],
        id="more trials and compared runs than a status holds",
    ),
    pytest.param(
        {
            "spec.dataCurve": {"sampleSizes": list(range(1, 21)), "seeds": 10, "compareAugmentation": True},
            "spec.data.augment": {},
            "spec.numTrials": 20,
            "spec.storage.uri": f"s3://bucket/{'p' * 400}",
        },
        [
            "`spec.dataCurve` must have at most 228 runs where naming an adapter takes 525 bytes (a shorter `spec.storage.uri` allows more), got 400"
        ],
        id="a curve whose adapters' URIs are too long for an environment variable",
    ),
    pytest.param(
        {"spec.ttlSecondsAfterFinished": -1},
        ["`spec.ttlSecondsAfterFinished` must be a whole number from 0 to 2147483647, got -1"],
        id="a wait of less than nothing",
    ),
]


@pytest.mark.parametrize(("changes", "sentences"), WRONG_MANIFESTS)
def test_a_wrong_manifest_is_refused_in_exactly_these_words(changes: dict[str, Any], sentences: list[str]) -> None:
    with pytest.raises(StudyInvalidError) as refused:
        parse_study(a_manifest(changes))
    assert list(refused.value.problems) == sentences


def test_every_problem_is_reported_at_once() -> None:
    changes = {"spec.numTrials": 0, "spec.storage.uri": "ftp://host/x", "spec.trainer.epochs": "3", "spec.seed": 1.5}
    with pytest.raises(StudyInvalidError) as refused:
        parse_study(a_manifest(changes))
    reported = "\n".join(refused.value.problems)
    assert all(f"`{path}`" in reported for path in changes)
    assert str(refused.value) == reported


def test_a_good_manifest_becomes_typed_values() -> None:
    study = parse_study(a_manifest())
    assert study.objective == Objective(metric="accuracy", direction=study.objective.direction)
    assert [p.search_space for p in study.parameters] == [
        LogUniform(min=1e-4, max=1e-2),
        Categorical(values=(4, 16, 64), ordered=True),
        Uniform(min=0.0, max=0.5),
    ]
    assert study.baseline == {"learning_rate": 1e-3, "lora_rank": 16, "weight_decay": 0.1}
    assert (study.namespace, study.uid, study.data.split.test_percent) == ("default", "local", 10)


def test_numbers_in_quotes_are_read_exactly() -> None:
    value = "0.30000000000000004"
    study = parse_study(a_manifest({"spec.baseline.weight_decay": value}))
    assert study.baseline is not None
    assert repr(study.baseline["weight_decay"]) == value


def test_whole_values_of_a_list_are_whole_numbers() -> None:
    values = ["4", "16.0", "6.4e1"]
    study = parse_study(a_manifest({"spec.parameters[1].searchSpace.categorical.values": values}))
    space = study.parameters[1].search_space
    assert isinstance(space, Categorical)
    assert [repr(value) for value in space.values] == ["4", "16", "64"]


def test_with_an_independent_test_set_the_test_percent_defaults_to_zero() -> None:
    assert parse_study(a_manifest({"spec.data.testSource": "audited"})).data.split.test_percent == 0


def test_ready_samples_need_no_attributes() -> None:
    for labels in ({}, {"from": "Given"}, {"from": "Markup"}, {"missing": "Unknown"}):
        study = parse_study(a_manifest({"spec.data.labels": labels, "spec.data.attributes": []}))
        assert (study.data.labels_from, study.data.attributes) == (LabelSource.GIVEN, ())


def test_given_labels_are_of_attributes_of_any_name():
    study = parse_study(
        a_manifest(
            {
                "spec.data.labels": {"from": "Given", "missing": "Absent"},
                "spec.data.attributes": ["people", "line_2"],
                "spec.outcomeConstraints": ["accuracy/line_2 >= 0.5"],
            }
        )
    )
    assert (study.data.attributes, study.data.missing_labels) == (("people", "line_2"), MissingLabel.ABSENT)
    assert study.outcome_constraints[0].metric == "accuracy/line_2"


def test_a_teacher_is_taken_with_its_defaults_and_in_full() -> None:
    labels = {"from": "Teacher", "missing": "Absent", "teacher": {"endpoint": "http://llm:8000/v1", "model": "large"}}
    study = parse_study(a_manifest({"spec.data.labels": labels, "spec.data.attributes": ["people"]}))
    assert (study.data.labels_from, study.data.missing_labels) == (LabelSource.TEACHER, MissingLabel.ABSENT)
    assert study.data.teacher == Teacher(endpoint="http://llm:8000/v1", model="large")
    assert parse_study(FULL_MANIFEST).data.teacher == Teacher(
        endpoint="https://llm.example/v1",
        model="large-1",
        secret_name="teacher",
        secret_key="key",
        answer_format=AnswerFormat.TEXT,
        instructions="Prices are those of today.",
        temperature=0.0,
        max_answer_tokens=512,
        max_tokens=1_000_000,
        when_tokens_run_out=OutOfTokens.REFUSE,
        self_consistency_samples=50,
        parallel_requests=8,
        timeout_seconds=60,
    )


def test_fields_that_only_a_cluster_needs_are_kept() -> None:
    template = {"spec": {"containers": [{"name": "trainer", "image": "trainer:1"}], "nodeSelector": {"gpu": "a100"}}}
    changes = {
        "spec.trainer.template": template,
        "spec.trainer.nodes": 2,
        "spec.trainer.acceleratorsPerNode": 8,
        "spec.storage.caBundle": {"secretName": "s3-certificates"},
        "spec.storage.secretName": "bucket-credentials",
        "spec.storage.deletionPolicy": "Delete",
        "spec.ttlSecondsAfterFinished": 0,
    }
    study = parse_study(a_manifest(changes))
    assert (study.trainer_template, study.data.template) == (template, None)
    assert (study.nodes, study.trainer.processes, study.accelerators) == (2, 8, 16)
    assert study.storage.ca_bundle == CaBundle(secret_name="s3-certificates")
    assert (study.storage.secret_name, study.storage.deletion_policy) == ("bucket-credentials", DeletionPolicy.DELETE)
    assert study.ttl_seconds_after_finished == 0


@pytest.mark.parametrize("path", ["spec.storage.endpoint", "spec.storage.region", "spec.data.testSource"])
def test_null_means_that_a_field_is_not_given(path: str) -> None:
    raw = a_manifest({path: "a word"})
    section, field = path.split(".")[1:]
    raw["spec"][section][field] = None
    assert parse_study(raw) == parse_study(a_manifest())


def test_the_baseline_may_be_left_out() -> None:
    assert parse_study(a_manifest({"spec.baseline": None})).baseline is None


def test_a_parameter_constraint_that_all_arms_keep_is_parsed() -> None:
    text = "weight_decay + 0.5 * weight_decay - 0.1 <= 0.3"
    assert parse_study(a_manifest({"spec.parameterConstraints": [text]})).parameter_constraints == (
        parse_linear_constraint(text),
    )


TWO_UNIFORM = {
    "spec.parameters": [
        {"name": "lora_dropout", "searchSpace": {"uniform": {"min": "0", "max": "0.2"}}},
        {"name": "weight_decay", "searchSpace": {"uniform": {"min": "0", "max": "0.5"}}},
    ],
    "spec.baseline": None,
}


@pytest.mark.parametrize(
    "constraints",
    [
        ["lora_dropout >= 0.5"],
        ["lora_dropout + weight_decay <= 0"],
        ["lora_dropout - weight_decay <= 0", "weight_decay - lora_dropout <= 0"],
        ["lora_dropout >= 0.15", "lora_dropout <= 0.05 + weight_decay", "weight_decay <= 0.05"],
        ["0 * lora_dropout >= 1"],
    ],
    ids=["beyond the range", "a corner", "a line", "apart", "of no parameter"],
)
def test_constraints_without_a_feasible_region_are_refused(constraints: list[str]) -> None:
    with pytest.raises(StudyInvalidError, match=r"spec\.parameterConstraints` must leave arms to try"):
        parse_study(a_manifest({**TWO_UNIFORM, "spec.parameterConstraints": constraints}))


@pytest.mark.parametrize(
    "constraints",
    [["lora_dropout + weight_decay <= 0.001"], ["lora_dropout - weight_decay <= 0"], ["lora_dropout <= 7"]],
    ids=["a small corner", "a half", "everything"],
)
def test_constraints_with_a_feasible_region_are_taken(constraints: list[str]) -> None:
    study = parse_study(a_manifest({**TWO_UNIFORM, "spec.parameterConstraints": constraints}))
    assert [constraint.text for constraint in study.parameter_constraints] == constraints


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 600)
    | st.sampled_from(["1e-3", "16", "accuracy", "s3://", "", "Given"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "uri", "min", "x"]), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([f"spec.{name}" for name in MANIFEST["spec"]]), JSON, max_size=4))
def test_any_manifest_gives_a_study_or_a_list_of_sentences(changes: dict[str, Any]) -> None:
    problems: tuple[str, ...] = ()
    try:
        parse_study(a_manifest(changes))
    except StudyInvalidError as error:
        problems = error.problems
    assert all(problem.startswith("`") and " must " in problem for problem in problems)


def test_rungs_are_read_and_a_third_is_promoted_from_each_but_the_last() -> None:
    changes: dict[str, Any] = {"spec.earlyEvaluation": {"rungs": [5, 10, 20]}, "spec.numTrials": 24}
    study = parse_study(a_manifest(changes))
    assert study.early_evaluation.rungs == (5, 10, 20)
    assert study.promotion.promoted_percents == (33, 33)
    given = parse_study(a_manifest(changes | {"spec.promotion.promotedPercents": [50, 40]}))
    assert given.promotion.promoted_percents == (50, 40)


def test_a_data_curve_is_read_with_its_defaults() -> None:
    study = parse_study(a_manifest({"spec.dataCurve": {"sampleSizes": [200, 400]}}))
    assert study.data_curve == DataCurve(
        sample_sizes=(200, 400), seeds=3, arm=CurveArm.WINNER, balanced=False, least_gain=0.01
    )
    assert parse_study(a_manifest()).data_curve is None


def test_one_rung_is_what_its_short_form_says() -> None:
    long, short = (
        parse_study(a_manifest({"spec.earlyEvaluation": early}))
        for early in ({"rungs": [30]}, {"checkpointPercent": 30})
    )
    assert long == short
