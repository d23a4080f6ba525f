"""Facts about this machine and process: what a run depends on, and how much memory it took."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

GIB = 1024**3

# Packages whose versions a result can depend on.
_PACKAGES = (
    "torch",
    "tokenizers",
    "safetensors",
    "transformers",
    "peft",
    "numpy",
    "scikit-learn",
    "sacrebleu",
    "rouge-score",
    "gguf",
    "mlflow",
)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_capacity() -> float:
    """GiB that this process may use: the machine's memory, or its control group's limit."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, float(Path(limit).read_text()))
    return total / GIB


def cuda_in_use() -> Any:
    """`torch.cuda` where this process trains on a GPU, else None; torch is not loaded for it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def training_capacity() -> float:
    """GiB where training happens: the GPU's memory as its driver reports it, else `memory_capacity`."""
    cuda = cuda_in_use()
    return float(cuda.mem_get_info()[1]) / GIB if cuda else memory_capacity()


def memory_now() -> float:
    """GiB in use now where training happens: torch's tensors on a GPU, else what is resident in this process."""
    cuda = cuda_in_use()
    return float(cuda.memory_allocated()) / GIB if cuda else _status("VmRSS")


def release_memory() -> None:
    """Give freed memory back to the system, so that what is resident is what is in use (glibc)."""
    import ctypes
    import gc

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak_memory() -> None:
    """Start a new measurement of `peak_memory` (on a GPU, or on Linux; elsewhere the peak is the process's)."""
    if cuda := cuda_in_use():
        cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Most GiB in use at a time since `reset_peak_memory`, see `memory_now`."""
    cuda = cuda_in_use()
    return float(cuda.max_memory_allocated()) / GIB if cuda else _status("VmHWM")


def _status(key: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024 / GIB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def processor() -> str:
    """Name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpus() -> list[str]:
    """Names of the CUDA devices that torch sees; empty when torch is not loaded yet."""
    cuda = cuda_in_use()
    return [cuda.get_device_name(i) for i in range(cuda.device_count())] if cuda else []


def git_commit(folder: Path | None = None) -> str | None:
    """Commit of the working tree that `folder` lies in, with `-dirty` when it has changes; None outside of one."""
    place = str(folder or Path.cwd())
    try:
        commit = subprocess.run(["git", "-C", place, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        if commit.returncode:
            return None
        dirty = subprocess.run(
            ["git", "-C", place, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "")


def environment() -> dict[str, Any]:
    """What `environment.json` holds."""
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    from tuneloop import __version__

    return {
        "version": 1,
        "tuneloop": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor(),
        "cores": cores(),
        "memory_gib": round(memory_capacity(), 2),
        "gpu": gpus(),
        "packages": packages,
    }
