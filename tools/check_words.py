"""Looks for words that `docs/words.md` has others for.

python tools/check_words.py     # names each place, and fails where there is one

The table of that page is the list: in code font in its third column.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "words.md"
EXEMPT = re.compile(r"docs/words\.md|CHANGELOG\.md|LICENSE|manifests/samples/data/|go\.(mod|sum)$")
EMPTY_NAMES = {"said", "told", "who", "what"}
"""Names in Python that say nothing of what they hold."""


def read_list() -> list[tuple[str, re.Pattern[str]]]:
    """Return the word of each row of the page, with what is not written in its place."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    found = [(row[0], re.findall(r"`([^`]+)`", row[2])) for row in rows[1:]]
    return [(word, re.compile(rf"(?<![\w`]){pattern}(?!\w)")) for word, patterns in found for pattern in patterns]


def find_words(text: str, words: list[tuple[str, re.Pattern[str]]]) -> Iterator[tuple[int, str, str]]:
    """Yield line, word as written and word to write."""
    for number, line in enumerate(text.splitlines(), 1):
        for word, pattern in words:
            if found := pattern.search(line):
                yield number, found.group(), word


def find_empty_names(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the same for names of Python that say nothing."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string in EMPTY_NAMES:
            yield token.start[0], token.string, "a name that tells what it holds"


def main() -> int:
    """Print every wrong word of the tracked files; return 1 where there is one."""
    words = read_list()
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout
    count = 0
    for name in files.splitlines():
        path = ROOT / name
        if EXEMPT.search(name) or not path.is_file():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found = [*find_words(text, words), *(find_empty_names(text) if name.endswith(".py") else ())]
        for number, written, word in found:
            print(f"{name}:{number}: {written!r}: docs/words.md has {word}")
        count += len(found)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
