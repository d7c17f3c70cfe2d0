"""The chart as Helm renders and installs it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts/finetune-study-operator"
RELEASE = "finetune-study"

Values = Mapping[str, Any]


class HelmError(Exception):
    """Helm has refused; its words."""


class Helm:
    """Helm's command line, with nothing of this machine's own settings.

    Args:
        program: Helm.
        directory: For its caches and the values of calls.
        kubeconfig: Of the cluster, where one is asked for anything.
    """

    def __init__(self, program: Path, directory: Path, *, kubeconfig: Path | None = None) -> None:
        self._program = program
        self._directory = directory
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))},
            **{f"HELM_{name}_HOME": str(directory / name.lower()) for name in ("CACHE", "CONFIG", "DATA")},
            **({"KUBECONFIG": str(kubeconfig)} if kubeconfig is not None else {}),
        }

    def run(self, *arguments: str | Path, values: Values | None = None) -> str:
        """Run it; return what it prints.

        Raises:
            HelmError: It failed.
        """
        given: Sequence[str | Path] = ()
        if values is not None:
            file = self._directory / "values.yaml"
            file.write_text(json.dumps(values))
            given = ("--values", file)
        result = subprocess.run(
            [self._program, *arguments, *given], env=self._environment, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise HelmError(result.stdout + result.stderr)
        return result.stdout

    def render(self, values: Values | None = None, *arguments: str, namespace: str = "shop-system") -> str:
        """Return what would be installed, as text."""
        return self.run("template", RELEASE, CHART, "--namespace", namespace, *arguments, values=values or {})

    def render_objects(self, values: Values | None = None, **options: Any) -> dict[str, dict[str, Any]]:
        """Return what would be installed: objects by `Kind/name`, with the namespace before the name if it has one."""
        return by_name(yaml.safe_load_all(self.render(values, **options)))

    def package(self, version: str) -> Path:
        """Pack the chart as another version."""
        self.run("package", CHART, "--version", version, "--app-version", version, "--destination", self._directory)
        return self._directory / f"{CHART.name}-{version}.tgz"


def by_name(objects: Any) -> dict[str, dict[str, Any]]:
    """Return objects by what they are called."""
    named = {}
    for each in objects:
        if each:
            metadata = each["metadata"]
            place = [metadata["namespace"]] if "namespace" in metadata else []
            named["/".join([each["kind"], *place, metadata["name"]])] = each
    return named
