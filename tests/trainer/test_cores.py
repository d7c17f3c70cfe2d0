"""A process counts the cores that it may use: by affinity, and by the CPU quota of its container."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trial_trainer.cores import count_cores

ALL = 8
PODS = "sys/fs/cgroup/kubepods"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(ALL)), raising=False)


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in ({"proc/self/cgroup": groups} | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINES: dict[str, tuple[str, dict[str, str], int]] = {
    "no control groups": ("", {}, ALL),
    "version 2, no quota": ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, ALL),
    "version 2, three cores": ("0::/\n", {"sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
    "half a core": ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    "more than the machine has": ("0::/\n", {"sys/fs/cgroup/cpu.max": "6400000 100000\n"}, ALL),
    "a quota of the group around": (
        "0::/kubepods/pod1/main\n",
        {f"{PODS}/pod1/main/cpu.max": "max 100000\n", f"{PODS}/pod1/cpu.max": "200000 100000\n"},
        2,
    ),
    "the least of several": (
        "0::/kubepods/pod1\n",
        {f"{PODS}/pod1/cpu.max": "200000 100000\n", f"{PODS}/cpu.max": "500000 100000\n"},
        2,
    ),
    "the host's path within a container": (
        "0::/kubepods/pod1\n",
        {"sys/fs/cgroup/cpu.max": "200000 100000\n"},
        2,
    ),
    "version 1": (
        "4:memory:/\n2:cpu,cpuacct:/docker/a\n",
        {
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "version 1 by its short name": (
        "2:cpu,cpuacct:/\n",
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n"},
        3,
    ),
    "version 1, no quota": (
        "2:cpu:/\n0::/\n",
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
        ALL,
    ),
    "another controller's quota": (
        "2:cpuacct:/\n",
        {"sys/fs/cgroup/cpuacct/cpu.cfs_quota_us": "1\n", "sys/fs/cgroup/cpuacct/cpu.cfs_period_us": "1\n"},
        ALL,
    ),
    "files that say nothing": ("0::/\nnonsense\n", {"sys/fs/cgroup/cpu.max": "100000\n"}, ALL),
    "a period of nothing": ("0::/\n", {"sys/fs/cgroup/cpu.max": "100000 0\n"}, ALL),
}


@pytest.mark.parametrize(("groups", "files", "cores"), MACHINES.values(), ids=MACHINES)
def test_a_containers_quota_limits_the_cores(tmp_path: Path, groups: str, files: dict[str, str], cores: int) -> None:
    assert count_cores(machine(tmp_path, groups, files)) == cores


def test_the_cores_that_a_process_is_bound_to_limit_a_larger_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5}, raising=False)
    assert count_cores(machine(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "300000 100000\n"})) == 1


def test_a_system_without_affinity_counts_its_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert count_cores(tmp_path) == 4
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores(tmp_path) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux binds processes to cores")
def test_a_process_that_is_bound_to_one_core_counts_one() -> None:
    one = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from trial_trainer.cores import count_cores; print(count_cores())"
    )
    message = subprocess.run([sys.executable, "-c", one], capture_output=True, text=True, check=True).stdout
    assert message == "1\n"
