"""kopf, of which any part may fail."""

from __future__ import annotations

import asyncio
from typing import Any

import kopf
import pytest

from study_operator.cluster import study_watch
from study_operator.cluster.study_watch import run_kopf


def test_a_part_of_kopf_that_fails_ends_it_even_where_another_one_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the operator looks well, and sees no study any more."""

    async def fail() -> None:
        raise RuntimeError("a watch has failed")

    async def be_stuck() -> None:
        while True:
            try:
                await asyncio.sleep(60.0)
            except asyncio.CancelledError:
                continue

    async def spawn_tasks(**_: Any) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(part()) for part in (be_stuck, fail)]

    monkeypatch.setattr(kopf, "spawn_tasks", spawn_tasks)
    monkeypatch.setattr(study_watch, "END_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match="a watch has failed"):
        run_kopf(None, None, lambda key: None, namespaces=["shop"])  # type: ignore[arg-type]
