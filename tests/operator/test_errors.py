"""One tree of errors, and the page of it in `errors.py` is whole."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from study_operator import errors
from study_operator.errors import OperatorError


def subclasses(kind: type[OperatorError]) -> Iterator[type[OperatorError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def test_every_error_of_the_package_is_in_the_tree_with_a_reason_of_its_own() -> None:
    found = set()
    # Only what defines errors is imported: Ax takes many seconds.
    package = Path(str(errors.__file__)).parent
    sources = [
        path for path in package.rglob("*.py") if re.search(r"^class \w+Error\(", path.read_text(), re.MULTILINE)
    ]
    for source in sources:
        module = importlib.import_module(
            ".".join(["study_operator", *source.relative_to(package).with_suffix("").parts])
        )
        found |= {
            each
            for each in vars(module).values()
            if isinstance(each, type) and issubclass(each, Exception) and each.__module__ == module.__name__
        }
    assert len(found) > 15
    ours = {OperatorError, *subclasses(OperatorError)}
    assert found <= ours
    shown = set(re.findall(r"(\w+Error)\b", errors.__doc__ or ""))
    assert {each.__name__ for each in ours} == shown
    reasons = [each.reason for each in ours if "reason" in vars(each)]
    assert len(reasons) == len(set(reasons))
    assert all(re.fullmatch(r"([A-Z][a-z]+)+", reason) for reason in reasons)
