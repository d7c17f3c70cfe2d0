"""Makes the CRD and `docs/api.md` of `study_api`, and what the chart takes over from the manifests.

python manifests/generate.py            # writes
python manifests/generate.py --check    # fails where a file is not what it would write
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
sys.path[:0] = [str(REPOSITORY / name) for name in ("manifests", "operator", "trainer")]

from copies import read_rules, render_argo_cd, render_crd_template, render_rule_templates, render_watched_namespace  # noqa: E402
from study_api.crd import build_crd  # noqa: E402
from study_api.reference import render_reference  # noqa: E402

HEAD = "# Made by manifests/generate.py of manifests/study_api.\n"


def build_files() -> Mapping[Path, str]:
    """Return what each file is to hold."""
    crd = build_crd()
    rules = read_rules(*((HERE / "operator" / name).read_text() for name in ("access.yaml", "people.yaml")))
    templates = REPOSITORY / "charts" / "finetune-study-operator" / "templates"
    return {
        HERE / "crd" / "crd.yaml": HEAD + _dump(crd),
        HERE / "watched-namespace" / "access.yaml": render_watched_namespace(rules),
        HERE / "argo-cd" / "argocd-cm.yaml": render_argo_cd((HERE / "argo-cd" / "health.lua").read_text()),
        templates / "crd.yaml": render_crd_template(_dump(crd)),
        templates / "_rules.tpl": render_rule_templates(rules),
        REPOSITORY / "docs" / "api.md": render_reference(crd),
    }


def _dump(raw: Any) -> str:
    return yaml.dump(raw, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, and with quotes around what Kubernetes reads as true or false and Python does not."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if text in {"y", "n", "Y", "N"} else None)


_Dumper.add_representer(str, _represent_text)


def main(arguments: list[str]) -> int:
    """Write the files, or compare them."""
    files = build_files()
    if arguments == ["--check"]:
        stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
        for path in stale:
            print(f"{path.relative_to(REPOSITORY)} must be made again: python manifests/generate.py", file=sys.stderr)
        return 1 if stale else 0
    for path, text in files.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
