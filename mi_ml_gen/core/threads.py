"""How many threads torch's arithmetic gets, and how they wait for one another. Torch-free: called before its import.

By default OpenMP starts a thread for each processor that it sees and lets them spin while they wait. Where other
processes want the same processors, or a container may use only part of them, a thread that spins takes the time that
the thread it waits for needs. So the scripts ask for as many threads as this process may use processors, and for
waiting asleep. What the user has set is never changed: OMP_NUM_THREADS, MKL_NUM_THREADS, OMP_WAIT_POLICY,
GOMP_SPINCOUNT, KMP_BLOCKTIME. MI_ML_GEN_THREADS=N chooses the number for these scripts alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping
from pathlib import Path

from mi_ml_gen.core.errors import UsageError

CHOICE = "MI_ML_GEN_THREADS"
NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def prepare(environment: MutableMapping[str, str] | None = None) -> None:
    """Set the environment variables that OpenMP reads when torch is imported. Raises UsageError for a
    MI_ML_GEN_THREADS that is no number of threads."""
    environment = os.environ if environment is None else environment
    if CHOICE in environment or not any(name in environment for name in NUMBERS):
        environment["OMP_NUM_THREADS"] = str(chosen(environment))
    if not any(name in environment for name in WAITING):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def chosen(environment: MutableMapping[str, str]) -> int:
    """MI_ML_GEN_THREADS, or this process's share of the processors that it may use."""
    if CHOICE in environment:
        text = environment[CHOICE]
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(f"{CHOICE}={text}: must be a number of threads, at least 1")
        return int(text)
    n_processes = environment.get("LOCAL_WORLD_SIZE", "1")  # of torchrun, on this machine
    return max(1, available() // max(1, int(n_processes) if n_processes.isdecimal() else 1))


def available() -> int:
    """Processors that this process may use: its affinity, bounded by the quota of its container, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> float | None:
    """The processors' time that the control groups of this process allow, in processors; None where unlimited."""
    limits = [_limit(folder) for folder in _cgroups(root, process)]
    return min((limit for limit in limits if limit is not None), default=None)


def _cgroups(root: Path, process: Path) -> list[Path]:
    """The folders of this process's group and of those above it, in version 2 and in version 1 (controller cpu)."""
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
        bases = {"": [root], "cpu": [root / "cpu", root / "cpu,cpuacct"]}
        for base in bases["cpu"] if "cpu" in controllers.split(",") else bases.get(controllers, []):
            parts = [part for part in path.split("/") if part not in ("", "..")]
            folders += [base.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
    return folders


def _limit(folder: Path) -> float | None:
    """cpu.max holds "quota period" or "max period"; version 1 has a file for each, and -1 for no limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # not there, not readable, or "max"
        return None
