"""Facts about this machine and process: what a run depends on, and how much memory it took."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.version import __version__

GIB = 1024**3

# Packages whose versions a result can depend on.
_PACKAGES = (
    "torch", "tokenizers", "safetensors", "transformers", "peft", "numpy", "scikit-learn", "sacrebleu", "rouge-score",
    "gguf", "mlflow",
)  # fmt: skip


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_busy() -> bool | None:
    """Whether more processes than there are cores have been at work here in the last minute; None: not known."""
    try:
        return os.getloadavg()[0] > cores() + 1 if hasattr(os, "getloadavg") else None
    except OSError:
        return None


def memory_capacity() -> float:
    """GiB that this process may use: the machine's memory, or its control group's limit."""
    total = float(_physical_memory())
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, float(Path(limit).read_text()))
    return total / GIB


def memory_left() -> float:
    """GiB that the system can still give, what it caches of files included (on Linux; elsewhere all that it has)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(float(line.split()[1]) * 1024 / GIB, memory_capacity())
    return memory_capacity()


def _physical_memory() -> int:
    """Bytes of the machine's memory; of Windows by the call that its task manager uses too."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import ctypes

    windows: Any = getattr(ctypes, "windll", None)
    if windows is None:
        return 1 << 62  # a system that says it in neither way
    kernel = windows.kernel32
    kibibytes = ctypes.c_ulonglong(0)
    kernel.GetPhysicallyInstalledSystemMemory(ctypes.byref(kibibytes))
    return kibibytes.value * 1024


def resident_memory() -> float:
    """GiB of this process that are resident now."""
    return _status("VmRSS")


def peak_resident_memory() -> float:
    """Most GiB resident at a time since `reset_peak_resident_memory`."""
    return _status("VmHWM")


def reset_peak_resident_memory() -> None:
    """Start a new measurement of `peak_resident_memory` (on Linux; elsewhere the peak is the process's)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def trim_memory() -> None:
    """Give freed memory back to the system (glibc)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status(key: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024 / GIB
    try:
        import resource
    except ModuleNotFoundError:  # Windows: what the task manager shows, as psutil reads it where it is installed
        return _memory_by_psutil()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _memory_by_psutil() -> float:
    try:
        import psutil
    except ModuleNotFoundError:
        return 0.0
    return float(psutil.Process().memory_info().rss) / GIB


def processor() -> str:
    """Name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cards(root: Path = Path("/")) -> list[str]:
    """Names of the system's GPUs, whether torch can use them or not: NVIDIA's, AMD's with ROCm's driver, Apple's."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return ["Apple GPU"]
    gpus = []
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            lines = (line.partition(":") for line in file.read_text().splitlines())
            gpus += [value.strip() for key, _, value in lines if key == "Model"]
    gpus = gpus or ["NVIDIA GPU" for _ in (root / "dev").glob("nvidia[0-9]*")]
    return gpus or (["AMD GPU"] if (root / "dev/kfd").exists() else [])


def git_commit() -> str | None:
    """Commit of the working tree that this folder is in, with `-dirty` when it has changes; None outside of one."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5)

    try:
        commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return None
    return None if commit.returncode else commit.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


def environment(gpus: Sequence[str] = ()) -> dict[str, Any]:
    """What `environment.json` holds."""
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "version": 1, "tuneloop": __version__, "git_commit": git_commit(), "python": platform.python_version(),
        "platform": platform.platform(), "cpu": processor(), "cores": cores(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or cores()), "memory_gib": round(memory_capacity(), 2),
        "gpu": list(gpus), "packages": packages,
    }  # fmt: skip


def processes() -> int:
    """Processes that share the run."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Place of this process among them, from 0."""
    return int(os.environ.get("RANK") or 0)


def is_first() -> bool:
    """Whether this process writes the run's files and speaks."""
    return rank() == 0
