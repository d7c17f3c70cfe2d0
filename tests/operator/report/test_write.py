"""The report and the ledger's copy are written when there is news."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from builders.desk import a_desk, a_proposal, run
from builders.ledgers import (
    a_job,
    a_ledger,
    a_rung_measurement,
    a_study,
    a_trial,
    ended,
)
from study_operator.ledger.bucket_copy import parse_copy
from study_operator.ledger.trial import (
    Trial,
    TrialState,
)
from study_operator.report.write import LedgerKeeper
from trial_trainer.artifacts import DirectoryStore
from trial_trainer.contract import (
    to_json,
)

MEASUREMENT_KEY = "trials/t000/rungs/0/measurement.json"


def test_the_ledger_copy_is_written_only_after_a_new_trial_or_measurement(tmp_path: Path) -> None:
    store, keeper = DirectoryStore(str(tmp_path)), LedgerKeeper()
    desk = a_desk(a_ledger(), proposals=[a_proposal()])

    def kept() -> Sequence[Trial]:
        text = store.read("ledger.json")
        return () if text is None else parse_copy(a_study(), text, "here").ledger.trials

    # Two arms are entered.
    keeper.keep(a_study(), run(desk), store)
    assert kept() == desk.ledger.trials
    assert len(kept()) == 2
    # That they run is no news for it.
    store.delete("ledger.json")
    desk.statuses = [a_job(), a_job("s1-t001-r0")]
    keeper.keep(a_study(), run(desk), store)
    assert {t.state for t in desk.ledger.trials} == {TrialState.RUNNING}
    assert kept() == ()
    measurement = replace(a_rung_measurement(a_trial(0), 0), step=12, total_steps=60)
    desk.objects[MEASUREMENT_KEY] = to_json(measurement).encode()
    desk.statuses = [ended(0), a_job("s1-t001-r0")]
    keeper.keep(a_study(), run(desk), store)
    assert [len(t.measurements) for t in kept()] == [1, 0, 0]
