"""A reader finds a file whole or as it was before, whatever happens to who writes it."""

import os
import stat
import threading
from pathlib import Path

import pytest

from trial_trainer.files import TEMPORARY, beside, write_whole


@pytest.mark.parametrize("is_durable", [False, True])
@pytest.mark.parametrize(("data", "stored"), [(b"\x00new", b"\x00new"), ("née", "née".encode()), ("", b"")])
def test_a_file_is_replaced_and_nothing_is_left_beside_it(
    tmp_path: Path, data: bytes | str, stored: bytes, is_durable: bool
) -> None:
    target = tmp_path / "inner" / "file"
    for _ in range(2):
        write_whole(target, data, is_durable=is_durable)
        assert target.read_bytes() == stored
    assert list(target.parent.iterdir()) == [target]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_whole(target, "old")

    def fail(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(target, "new", is_durable=True)
    assert (list(tmp_path.iterdir()), target.read_text()) == ([target], "old")


def test_a_file_has_the_usual_mode_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "usual", "")
        write_whole(tmp_path / "private", "", mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "usual").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_a_temporary_file_is_named_so_and_goes_with_its_block(tmp_path: Path) -> None:
    with beside(tmp_path / "file") as temporary:
        temporary.write_text("half")
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(TEMPORARY)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    texts = [letter * 1_000_000 for letter in "ab"]
    write_whole(target, texts[0])

    def write() -> None:
        for round_ in range(40):
            write_whole(target, texts[round_ % 2])

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(target.read_text())
    assert seen <= set(texts)
