"""The final evaluation: who is asked, what is written, and that the test set is read once."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import count

import pytest

from trial_trainer.artifacts import DirectoryStore
from trial_trainer.contract import (
    BaseModel,
    Candidate,
    Confirmation,
    ContractError,
    DatasetSummary,
    FinalEvaluation,
    FinalEvaluationConfig,
    Progress,
    RungMeasurement,
    TrainerSettings,
    from_json,
    to_json,
)
from trial_trainer.dataset.store import (
    HAND,
    MARKUP,
    DatasetIndex,
    Page,
    Question,
    read_index,
    write_index,
    write_split,
    write_summary,
)
from trial_trainer.errors import DatasetError, StudyError
from trial_trainer.evaluation.final import run_final_evaluation
from trial_trainer.evaluation.measure import build_prediction

BASELINE = Candidate(trial="t000", adapter="runs/t000/adapter")
WINNER = Candidate(trial="t003", adapter="runs/t003/adapter")


def a_page(number: int, **changes) -> Page:
    name = Question(
        attribute="name",
        prompt=(7, 8),
        answer=(9, 2),
        answer_text="Kettle",
        gold=("Kettle",),
        origin=MARKUP,
        rule="Kettle" if number % 2 else "Home",
        constant="Lamp",
    )
    brand = replace(name, attribute="brand", gold=("Smeg",), origin=HAND, rule=None, constant="Smeg")
    sku = replace(name, attribute="sku", gold=(), origin=HAND, rule="4711", constant=None)
    page = Page(id=f"p{number}", site=f"shop{number}", url=None, prefix=(1,), questions=(name, brand, sku))
    return replace(page, **changes)


def write_dataset(tmp_path, pages, split="test") -> None:
    store = DirectoryStore(str(tmp_path / "dataset"))
    index = DatasetIndex(
        tokenizer="t",
        layout="TwoTurns",
        system="",
        end_of_turn=(2,),
        max_length_tokens=64,
        page_tokens=32,
        longest_answer_tokens=4,
        attributes=("name", "brand", "sku"),
        constants={},
        digests={split: write_split(store, split, pages)},
    )
    write_index(store, index)
    summary = DatasetSummary(
        study="s",
        splits={},
        skipped_pages={},
        dropped_labels={},
        pages_of_test_sites=0,
        warnings=(),
        fingerprint="f",
    )
    write_summary(store, summary)


def a_config(tmp_path, **changes) -> FinalEvaluationConfig:
    config = FinalEvaluationConfig(
        study="s",
        winner=WINNER,
        baseline=BASELINE,
        base_model=BaseModel(uri="model"),
        dataset=str(tmp_path / "dataset"),
        output=str(tmp_path / "final-evaluation"),
        trainer=TrainerSettings(epochs=1, max_length_tokens=64),
    )
    return replace(config, **changes)


class Models:
    """Models that say one word to every question; remembers which were asked."""

    def __init__(self, word_by_trial: Mapping[str | None, str] | None = None) -> None:
        self.word_by_trial = word_by_trial or {"t003": "Kettle", "t000": "Smeg", None: ""}
        self.asked: list[str | None] = []

    def __call__(self, candidate, pages, index, tell=lambda answered: None):
        trial = candidate.trial if candidate else None
        self.asked.append(trial)
        word = self.word_by_trial[trial]
        found = [build_prediction(page, q, answer=word) for page in pages for q in page.questions]
        for answered in range(1, len(found) + 1):
            tell(answered)
        return found


def read_lines(tmp_path) -> list[dict]:
    text = (tmp_path / "final-evaluation" / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.fixture
def pages(tmp_path) -> list[Page]:
    pages = [a_page(number) for number in range(4)]
    write_dataset(tmp_path, pages)
    return pages


def test_the_winner_stands_beside_every_baseline(tmp_path, pages) -> None:
    final_evaluation = run_final_evaluation(a_config(tmp_path), answer=Models())
    means = {name: (j.hand_labelled.value, j.all_asked.value) for name, j in final_evaluation.predictors.items()}
    assert means == {
        "winner": (0.0, 0.5),
        "baseline": (1.0, 0.5),
        "untrained": (0.0, 0.0),
        "rule_based": (0.0, 0.25),
        "constant": (1.0, 0.5),
    }
    assert final_evaluation.predictors["rule_based"].by_attribute["name"].value == 0.5
    assert final_evaluation.predictors["rule_based"].by_attribute["name"].n == 4


def test_rules_may_be_silent_and_a_model_may_not(tmp_path, pages) -> None:
    predictors = run_final_evaluation(a_config(tmp_path), answer=Models()).predictors
    assert predictors["untrained"].invalid_output_rate.value == 1.0
    assert predictors["rule_based"].invalid_output_rate.value == 0.0
    assert {name: j.false_value_rate.value for name, j in predictors.items()} == {
        "winner": 1.0,
        "baseline": 1.0,
        "untrained": 0.0,
        "rule_based": 1.0,
        "constant": 0.0,
    }


def test_the_winner_is_compared_with_each_baseline_by_both_means(tmp_path, pages) -> None:
    gains = run_final_evaluation(a_config(tmp_path), answer=Models()).gains
    others = ("baseline", "untrained", "rule_based", "constant")
    assert set(gains) == {f"{mean}/winner-{other}" for mean in ("hand_labelled", "all_asked") for other in others}
    assert gains["hand_labelled/winner-baseline"].difference == -1.0
    assert (gains["all_asked/winner-rule_based"].difference, gains["all_asked/winner-rule_based"].n) == (0.25, 8)
    assert (gains["all_asked/winner-rule_based"].low, gains["all_asked/winner-rule_based"].sites) == (None, 4)


def test_a_mean_that_no_question_has_has_no_gains(tmp_path) -> None:
    pages = [a_page(number) for number in range(6)]
    from_markup = [replace(p, questions=tuple(replace(q, origin=MARKUP) for q in p.questions)) for p in pages]
    write_dataset(tmp_path, from_markup)
    final_evaluation = run_final_evaluation(a_config(tmp_path), answer=Models())
    assert final_evaluation.predictors["winner"].hand_labelled.n == 0
    assert {name.partition("/")[0] for name in final_evaluation.gains} == {"all_asked"}


@pytest.mark.parametrize(
    ("baseline", "asked"),
    [
        pytest.param(BASELINE, ["t003", "t000", None], id="three models"),
        pytest.param(None, ["t003", None], id="no baseline"),
        pytest.param(WINNER, ["t003", None], id="the baseline won"),
    ],
)
def test_each_model_is_asked_once(tmp_path, pages, baseline, asked) -> None:
    models = Models()
    run_final_evaluation(a_config(tmp_path, baseline=baseline), answer=models)
    assert models.asked == asked


def test_runs_of_the_data_curve_are_scored_beside_the_others_and_their_answers_forgotten(tmp_path, pages) -> None:
    write_dataset(tmp_path, pages)
    runs = tuple(Candidate(trial=name, adapter=f"runs/{name}/adapter") for name in ("t004", "t005"))
    models = Models({"t003": "Kettle", "t000": "Smeg", None: "", "t004": "Kettle", "t005": "Smeg"})
    found = run_final_evaluation(a_config(tmp_path, curve=runs), answer=models)
    assert models.asked == ["t003", "t000", None, "t004", "t005"]
    assert found.curve["t004"] == found.predictors["winner"]
    assert found.curve["t005"] == found.predictors["baseline"]
    assert set(found.predictors) == {"winner", "baseline", "untrained", "rule_based", "constant"}
    assert set(read_lines(tmp_path)[0]["answers"]) == set(found.predictors)
    assert set(found.seconds) == {"winner", "baseline", "untrained", "t004", "t005"}


def write_rung(tmp_path, rung: int, word: str, loss: float, step: int) -> Candidate:
    """Write what one rung of the winner left on a validation set of six pages; return its adapter."""
    store = DirectoryStore(str(tmp_path / "trials" / "t003" / "rungs" / str(rung)))
    given = [
        build_prediction(page, q, answer=word, loss=loss + 0.01 * i, answer_tokens=2)
        for i, page in enumerate(map(a_page, range(6)))
        for q in page.questions
    ]
    store.write("predictions.jsonl", "".join(to_json(p) + "\n" for p in given).encode())
    store.write("training-losses.json", json.dumps([1.0] * 4 + [0.25] * (step - 4)).encode())
    measurement = RungMeasurement(
        study="s", trial="t003", rung=rung, step=step, total_steps=20, checkpoint="", metrics={}, samples_seen=1,
        tokens_per_second=1.0, peak_memory_bytes=1, seconds={},
    )  # fmt: skip
    store.write("measurement.json", to_json(measurement).encode())
    store.write("adapter/adapter_config.json", b"{}")
    return Candidate(trial="t003", adapter=f"{store.uri}/adapter")


class Rungs(Models):
    """As `Models`, but the winner's first adapter knows the brand and its last one the name."""

    def __call__(self, candidate, pages, index, tell=lambda answered: None):
        is_early = candidate is not None and "/rungs/0/" in candidate.adapter
        self.word_by_trial = {**self.word_by_trial, "t003": "Smeg" if is_early else "Kettle"}
        return super().__call__(candidate, pages, index, tell)


def test_the_winner_at_its_first_rung_is_read_beside_its_end_and_both_are_compared_on_validation(tmp_path) -> None:
    write_dataset(tmp_path, [a_page(number) for number in range(6)])
    early, late = write_rung(tmp_path, 0, "", 0.5, 4), write_rung(tmp_path, 1, "Kettle", 0.7, 20)
    models = Rungs()
    found = run_final_evaluation(a_config(tmp_path, winner=late, winner_early=early), answer=models)

    assert models.asked == ["t003", "t003", "t000", None]
    assert found.predictors["winner_early"].hand_labelled.value == 1.0
    assert found.gains["hand_labelled/winner-winner_early"].difference == -1.0
    change = found.winner_change
    assert change is not None and change.accuracy is not None and change.loss is not None
    assert (change.accuracy.difference, change.accuracy.n, change.accuracy.sites) == (0.5, 12, 6)
    assert change.loss.difference == pytest.approx(0.2)
    assert (change.training_loss_before, change.training_loss_after) == (1.0, 0.25)


def test_a_first_adapter_that_is_gone_costs_nothing_else(tmp_path, pages, caplog) -> None:
    gone = Candidate(trial="t003", adapter=str(tmp_path / "trials" / "t003" / "rungs" / "0" / "adapter"))
    found = run_final_evaluation(a_config(tmp_path, winner_early=gone), answer=Models())
    assert "is gone: nothing is said of the winner at its first rung" in caplog.text
    assert "winner_early" not in found.predictors and found.winner_change is None


def test_what_somebody_elses_trainer_wrote_of_its_rungs_is_not_compared(tmp_path, pages, caplog) -> None:
    early, late = write_rung(tmp_path, 0, "", 0.5, 4), write_rung(tmp_path, 1, "", 0.5, 20)
    (tmp_path / "trials" / "t003" / "rungs" / "0" / "predictions.jsonl").write_text('{"text": "Kettle"}\n')
    found = run_final_evaluation(a_config(tmp_path, winner=late, winner_early=early), answer=Rungs())
    assert found.winner_change is None and "cannot be compared on validation" in caplog.text
    assert "winner_early" in found.predictors


@pytest.mark.parametrize("text", ['{"losses": [1.0]}', "[1.0, 1.0, 1.0, 1.0, 1.0, null]", "[1, 1, 1, 1, NaN, 1]"])
def test_losses_of_training_that_are_no_numbers_are_not_compared(tmp_path, pages, text) -> None:
    early, late = write_rung(tmp_path, 0, "", 0.5, 4), write_rung(tmp_path, 1, "", 0.7, 20)
    (tmp_path / "trials" / "t003" / "rungs" / "1" / "training-losses.json").write_text(text)
    change = run_final_evaluation(a_config(tmp_path, winner=late, winner_early=early), answer=Rungs()).winner_change
    assert change is not None and change.loss is not None and change.loss.difference == pytest.approx(0.2)
    assert (change.training_loss_before, change.training_loss_after) == (None, None)


def a_confirmation(seed: int) -> Confirmation:
    winner, baseline = (Candidate(trial=f"t{2 * seed + k:03d}", adapter=f"runs/{seed}/{k}/adapter") for k in (0, 1))
    return Confirmation(seed=seed, winner=winner, baseline=baseline)


def test_winner_and_baseline_under_further_seeds_are_read_in_the_same_run_and_compared(tmp_path) -> None:
    write_dataset(tmp_path, [a_page(number) for number in range(6)])
    pairs = tuple(a_confirmation(seed) for seed in (2, 3, 4))
    # Of the two values of a page the winner knows the name: under seed 4 it is the baseline that does.
    words = {"t004": "Kettle", "t005": "", "t006": "Kettle", "t007": "", "t008": "", "t009": "Kettle"}
    models = Models({"t003": "Kettle", "t000": "Smeg", None: "", **words})
    found = run_final_evaluation(a_config(tmp_path, confirmations=pairs), answer=models)

    assert models.asked == ["t003", "t000", None, "t004", "t005", "t006", "t007", "t008", "t009"]
    gain = found.seed_gains["all_asked/winner-baseline"]
    assert gain.by_seed == {"2": 0.5, "3": 0.5, "4": -0.5}
    assert (gain.difference, gain.n, gain.sites) == (pytest.approx(1 / 6), 12, 6)
    # Seeds alone, of which each has another value: Student's with two degrees of freedom, 4.3 x 1 / 3.
    assert gain.low == -1.0 and gain.high == 1.0
    # A brand is known by hand, and neither knows it.
    assert found.seed_gains["hand_labelled/winner-baseline"].by_seed == {"2": 0.0, "3": 0.0, "4": 0.0}
    assert found.confirmations["t004"] == found.predictors["winner"]
    assert found.confirmations["t008"].all_asked.value == 0.0
    # The gain of the winner's own run is what it is without them.
    alone = run_final_evaluation(a_config(tmp_path, output=str(tmp_path / "alone")), answer=models)
    assert found.gains == alone.gains and found.predictors == alone.predictors
    assert (alone.confirmations, alone.seed_gains) == ({}, {})
    assert set(read_lines(tmp_path)[0]["answers"]) == set(found.predictors)


def test_a_baseline_that_won_has_the_winners_numbers_and_no_gain(tmp_path, pages) -> None:
    final_evaluation = run_final_evaluation(a_config(tmp_path, baseline=WINNER), answer=Models())
    assert final_evaluation.predictors["baseline"] == final_evaluation.predictors["winner"]
    assert "all_asked/winner-untrained" in final_evaluation.gains
    assert not any("baseline" in name for name in final_evaluation.gains)


def test_without_a_baseline_nothing_is_said_of_one(tmp_path, pages) -> None:
    final_evaluation = run_final_evaluation(a_config(tmp_path, baseline=None), answer=Models())
    assert "baseline" not in final_evaluation.predictors
    assert not any("baseline" in name for name in final_evaluation.gains)


def test_ready_samples_have_no_rules_to_be_beaten(tmp_path) -> None:
    pages = [a_page(number) for number in range(3)]
    write_dataset(
        tmp_path,
        [replace(p, questions=tuple(replace(q, rule=None, constant=None) for q in p.questions)) for p in pages],
    )
    final_evaluation = run_final_evaluation(a_config(tmp_path), answer=Models())
    assert set(final_evaluation.predictors) == {"winner", "baseline", "untrained"}


def test_two_samples_of_one_context_are_two_questions(tmp_path) -> None:
    completion = replace(a_page(0).questions[0], attribute="completion")
    samples = (completion, replace(completion, gold=("Pot",)))
    write_dataset(tmp_path, [a_page(number, questions=samples) for number in range(3)])
    final_evaluation = run_final_evaluation(a_config(tmp_path), answer=Models())
    assert final_evaluation.predictors["winner"].all_asked.value == 0.5
    assert final_evaluation.gains["all_asked/winner-untrained"].n == 6


def test_every_answer_is_written_beside_its_gold(tmp_path, pages) -> None:
    run_final_evaluation(a_config(tmp_path), answer=Models({"t003": "Käse\u2028\n", "t000": "Smeg", None: ""}))
    lines = read_lines(tmp_path)
    assert len(lines) == 12
    assert lines[1] == {
        "page": "p0",
        "site": "shop0",
        "attribute": "brand",
        "origin": "Hand",
        "gold": ["Smeg"],
        "answers": {
            "winner": "Käse\u2028\n",
            "baseline": "Smeg",
            "untrained": "",
            "rule_based": "",
            "constant": "Smeg",
        },
        "unfinished": [],
    }


def test_answers_that_were_cut_off_are_named(tmp_path, pages) -> None:
    def answer(candidate, pages, index, tell):
        return [replace(p, finished=candidate is not None) for p in Models()(candidate, pages, index)]

    run_final_evaluation(a_config(tmp_path), answer=answer)
    assert {tuple(line["unfinished"]) for line in read_lines(tmp_path)} == {("untrained",)}


def test_the_seconds_are_those_of_each_model(tmp_path, pages) -> None:
    ticks = count(start=100.0, step=2.5)
    final_evaluation = run_final_evaluation(a_config(tmp_path), answer=Models(), clock=lambda: next(ticks))
    assert final_evaluation.seconds == {"winner": 2.5, "baseline": 2.5, "untrained": 2.5}


def test_who_waits_is_told_which_model_has_answered_how_many_questions(tmp_path, pages) -> None:
    seen = []

    class Watched(Models):
        def __call__(self, candidate, pages, index, tell):
            def tell_and_look(answered):
                tell(answered)
                seen.append(from_json(Progress, (tmp_path / "progress.json").read_bytes()))

            return super().__call__(candidate, pages, index, tell_and_look)

    ticks = count(step=1.0)
    config = a_config(
        tmp_path,
        progress=str(tmp_path / "progress.json"),
        digest="d",
        curve=(Candidate(trial="t009", adapter="runs/t009/adapter"),),
    )
    models = Watched({"t003": "Kettle", "t000": "Smeg", None: "", "t009": "x"})
    run_final_evaluation(config, answer=models, clock=lambda: next(ticks))
    assert {progress.phase for progress in seen} == {"winner", "baseline", "untrained", "t009"}
    assert {(progress.stop_step, progress.total_steps, progress.digest) for progress in seen} == {(12, 48, "d")}
    # A clock that ticks at each look: every second answer comes late enough to be told.
    assert [progress.step for progress in seen[:6]] == [0, 2, 2, 4, 4, 6]
    assert seen[0].eta_seconds is None
    assert seen[1].eta_seconds == pytest.approx(4 / 2 * 46)


def test_progress_that_cannot_be_written_loses_no_evaluation(tmp_path, pages, caplog) -> None:
    (tmp_path / "file").write_text("no directory")
    config = a_config(tmp_path, progress=str(tmp_path / "file" / "progress.json"))
    run_final_evaluation(config, answer=Models())
    assert "progress is not written" in caplog.text
    assert read_lines(tmp_path)


def test_the_models_get_the_test_pages_and_the_index(tmp_path, pages) -> None:
    seen = []

    def answer(candidate, pages, index, tell):
        seen.append((list(pages), index))
        return Models()(candidate, pages, index)

    run_final_evaluation(a_config(tmp_path), answer=answer)
    assert seen[0] == (pages, read_index(DirectoryStore(str(tmp_path / "dataset"))))


def test_the_final_evaluation_that_is_written_is_the_one_returned(tmp_path, pages) -> None:
    final_evaluation = run_final_evaluation(a_config(tmp_path), answer=Models())
    assert (
        from_json(FinalEvaluation, (tmp_path / "final-evaluation" / "final-evaluation.json").read_bytes())
        == final_evaluation
    )


def test_the_test_set_is_read_once(tmp_path, pages) -> None:
    first = run_final_evaluation(a_config(tmp_path), answer=Models())
    better = Models({"t003": "Smeg", "t000": "", None: ""})
    assert run_final_evaluation(a_config(tmp_path), answer=better) == first
    assert better.asked == []


def test_who_loses_a_race_returns_what_stands(tmp_path, pages) -> None:
    final_evaluation = []

    def answer(candidate, pages, index, tell):
        if not final_evaluation:
            final_evaluation.append(None)
            final_evaluation.append(run_final_evaluation(a_config(tmp_path), answer=Models()))
        return Models({"t003": "", "t000": "", None: ""})(candidate, pages, index)

    assert run_final_evaluation(a_config(tmp_path), answer=answer) == final_evaluation[1]


def test_another_winner_does_not_get_a_second_look(tmp_path, pages) -> None:
    run_final_evaluation(a_config(tmp_path), answer=Models())
    with pytest.raises(ContractError, match=r"winner must be 't003' of study 's'.*got 't000' of 's'.*read once"):
        run_final_evaluation(a_config(tmp_path, winner=BASELINE), answer=Models())


def test_a_final_evaluation_of_another_arm_data_or_model_is_said_and_replaced(tmp_path, pages, caplog) -> None:
    run_final_evaluation(a_config(tmp_path, winner=BASELINE, digest="a"), answer=Models())
    final_evaluation = run_final_evaluation(a_config(tmp_path, digest="b"), answer=Models())
    assert (final_evaluation.winner, final_evaluation.digest) == ("t003", "b")
    assert "final-evaluation.json of " in caplog.text
    assert "does not count: its digest must be 'b', got 'a'" in caplog.text
    better = Models({"t003": "Smeg", "t000": "", None: ""})
    assert run_final_evaluation(a_config(tmp_path, digest="b"), answer=better) == final_evaluation
    assert better.asked == []


def test_a_dataset_that_is_another_one_by_now_is_not_evaluated_with(tmp_path, pages) -> None:
    with pytest.raises(DatasetError, match=r"FinalEvaluationConfig.dataset must be .*fingerprint '00ff', got 'f'"):
        run_final_evaluation(a_config(tmp_path, dataset_fingerprint="00ff"), answer=Models())


def test_an_adapter_is_known_by_the_measurement_beside_it(tmp_path, pages) -> None:
    winner = Candidate(trial="t003", adapter=str(tmp_path / "adapter"), digest="a")
    store = DirectoryStore(str(tmp_path))
    store.write("measurement.json", b'{"digest": "b"}')
    config = a_config(tmp_path, winner=winner)
    with pytest.raises(StudyError, match=r"adapter of trial t003 must lie beside .*digest 'a', got 'b'"):
        run_final_evaluation(config, answer=Models())
    # One of an earlier version tells nothing.
    store.write("measurement.json", b"{}")
    assert run_final_evaluation(config, answer=Models()).winner == "t003"


def test_a_model_that_fails_leaves_no_final_evaluation(tmp_path, pages) -> None:
    def answer(candidate, pages, index, tell):
        if candidate is None:
            raise MemoryError
        return Models()(candidate, pages, index)

    with pytest.raises(MemoryError):
        run_final_evaluation(a_config(tmp_path), answer=answer)
    assert not (tmp_path / "final-evaluation").exists()
    assert run_final_evaluation(a_config(tmp_path), answer=Models()).winner == "t003"


def test_a_dataset_without_a_test_split_is_refused(tmp_path) -> None:
    write_dataset(tmp_path, [a_page(0)], split="validation")
    with pytest.raises(DatasetError, match=r"has no split 'test', only validation"):
        run_final_evaluation(a_config(tmp_path), answer=Models())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda given: given[:-1], r"the answers of winner must be those to the 12 .* got 11 answers$", id="too few"
        ),
        pytest.param(
            lambda given: given[::-1], r"first wrong: \('p3', 'sku', \(\)\) for \('p0', 'name'", id="out of order"
        ),
        pytest.param(lambda given: [*given, given[0]], r"got 13 answers$", id="too many"),
    ],
)
def test_answers_to_other_questions_are_refused(tmp_path, pages, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        run_final_evaluation(a_config(tmp_path), answer=lambda *arguments: change(Models()(*arguments)))


def test_evaluating_needs_no_torch() -> None:
    script = "import sys, trial_trainer.evaluation.final; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], check=False, env=environment).returncode == 0
