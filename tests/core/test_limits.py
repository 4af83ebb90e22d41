from __future__ import annotations

import math
from pathlib import Path

import pytest

from medseg.core import limits
from medseg.core.limits import available_cores, memory_limit


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Writes files below the control groups' folder; the process is in the group `place` and may run on eight cores."""

    def make(place: str, **files: str) -> None:
        (tmp_path / "own").write_text(place)
        for name, text in files.items():
            path = tmp_path / "groups" / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")

    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(limits, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return make


def test_without_limits_all_cores_and_all_memory(groups):
    assert (available_cores(), memory_limit()) == (8, math.inf)
    groups("0::/", cpu_DOT_max="max 100000", memory_DOT_max="max")
    assert (available_cores(), memory_limit()) == (8, math.inf)


def test_a_container_has_its_own_root(groups):
    groups("0::/", cpu_DOT_max="250000 100000", memory_DOT_max="2000000000")
    assert (available_cores(), memory_limit()) == (3, 2e9)


def test_a_job_is_held_by_the_tightest_group_around_it(groups):
    groups(
        "0::/slurm/job_7/step_0",
        slurm__job_7__memory_DOT_max="8000000000",
        slurm__job_7__step_0__memory_DOT_max="max",
        slurm__job_7__cpu_DOT_max="50000 100000",
        slurm__memory_DOT_max="64000000000",
        other__memory_DOT_max="1",
    )
    assert (available_cores(), memory_limit()) == (1, 8e9)


def test_the_first_version_of_control_groups(groups):
    groups(
        "4:memory:/job\n5:cpu,cpuacct:/job",
        memory__job__memory_DOT_limit_in_bytes="3000000000",
        memory__memory_DOT_limit_in_bytes="9223372036854771712",
        **{"cpu,cpuacct__job__cpu_DOT_cfs_quota_us": "400000", "cpu,cpuacct__job__cpu_DOT_cfs_period_us": "100000"},
    )
    assert (available_cores(), memory_limit()) == (4, 3e9)
    groups("5:cpu:/", cpu__cpu_DOT_cfs_quota_us="-1", cpu__cpu_DOT_cfs_period_us="100000")
    assert available_cores() == 8
