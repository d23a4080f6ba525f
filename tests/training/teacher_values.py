"""What TRL and torchtune make of divergences on a small batch, frozen in `teacher_values.json`; `python tests/training/teacher_values.py` makes it again.

Logits come from a formula, so that the file holds values only.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_suffix(".json")
POSITIONS, VOCABULARY, SKIPPED = 6, 40, 2  # `SKIPPED` is a position whose token is not learned


def logits() -> tuple[Any, Any]:
    """A student's and a teacher's, the same on every machine."""
    steps = torch.arange(POSITIONS * VOCABULARY, dtype=torch.float32)
    student, teacher = 3 * torch.sin(steps * 0.37), 4 * torch.cos(steps * 0.61 + 1)
    return student.view(POSITIONS, VOCABULARY), teacher.view(POSITIONS, VOCABULARY)


def labels() -> Any:
    made = torch.arange(POSITIONS)
    made[SKIPPED] = -100
    return made


def of_few_tokens() -> Any:
    """A teacher's logits over a smaller vocabulary."""
    return logits()[1][:, : VOCABULARY - 9].contiguous()


def universal_values() -> list[dict[str, float]]:
    """TRL's loss between models of different vocabularies that cut a text alike, and its gradient's norm."""
    from types import SimpleNamespace

    from trl.experimental.gold.gold_trainer import ULDLoss

    found = []
    for temperature in (1.0, 2.0):
        config = SimpleNamespace(
            uld_crossentropy_weight=0.0, uld_distillation_weight=1.0, uld_student_temperature=temperature,
            uld_teacher_temperature=temperature, uld_skip_student_eos=False, uld_skip_teacher_eos=False, use_extended_uld=False,
            uld_token_merge_strategy="observed",
        )  # fmt: skip
        own, ids = logits()[0][None].clone().requires_grad_(), torch.arange(POSITIONS)[None]
        loss = ULDLoss(config)(own, of_few_tokens()[None], ids, ids, ids, ids)
        loss.backward()
        norm = float(own.grad.norm())  # type: ignore[union-attr]
        found.append({"temperature": temperature, "loss": float(loss), "gradient": norm})
    return found


def torchtune_losses() -> Any:
    """The module of torchtune's losses by itself: the package needs an older torchao."""
    package = importlib.util.find_spec("torchtune")
    assert package is not None and package.origin is not None
    file = Path(package.origin).parent / "modules" / "loss" / "kd_losses.py"
    spec = importlib.util.spec_from_file_location("kd_losses", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def values() -> dict[str, Any]:
    """The mean over learned positions, with its gradient's norm."""
    from trl.experimental.gkd import GKDTrainer

    torchtune = torchtune_losses()
    student, teacher = logits()
    found: dict[str, Any] = {"trl": [], "torchtune": {}}
    for beta in (0.0, 0.3, 0.5, 1.0):
        for temperature in (1.0, 2.0):
            own = student.clone().requires_grad_()
            loss = GKDTrainer.generalized_jsd_loss(own, teacher, labels(), beta=beta, temperature=temperature)
            loss.backward()
            norm = float(own.grad.norm())  # type: ignore[union-attr]
            found["trl"].append({"beta": beta, "temperature": temperature, "loss": float(loss), "gradient": norm})
    found["universal"] = universal_values()
    for name, kind in (("forward", torchtune.ForwardKLLoss), ("reverse", torchtune.ReverseKLLoss)):
        own = student.clone().requires_grad_()
        loss = kind()(own, teacher, labels())
        loss.backward()
        found["torchtune"][name] = {"loss": float(loss), "gradient": float(own.grad.norm())}  # type: ignore[union-attr]
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(values(), indent=1) + "\n")
    sys.stdout.write(FILE.read_text())
