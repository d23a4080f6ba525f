"""A loss of your own: ORPO, which learns the chosen answer and pushes the rejected one away without any reference.

Run it: python examples/extend/new_loss.py PREFERENCE_DATASET OUT    (a folder made by `tuneloop prepare`)
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tuneloop.data import load_dataset
from tuneloop.models import load_model
from tuneloop.training.config import TrainConfig
from tuneloop.training.loop import train
from tuneloop.training.loss import LOSSES, Batch, Loss, log_likelihoods
from tuneloop.training.rows import PAIRS


def orpo(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean log likelihood of the chosen answer plus the log odds ratio (Hong et al. 2024, arXiv 2403.07691, equation 6)."""
    parts = [pair.chosen for pair in batch.rows] + [pair.rejected for pair in batch.rows]
    lengths = torch.tensor([float(sum(part.mask)) for part in parts])
    chosen, rejected = (log_likelihoods(batch.model, parts) / lengths).view(2, -1)
    odds = chosen - rejected - torch.log1p(-chosen.exp()) + torch.log1p(-rejected.exp())
    loss = (-chosen - batch.config.beta * F.logsigmoid(odds)).sum() * batch.share
    return loss, {"odds_accuracy": (odds.detach() > 0).float().sum() * batch.share}


LOSSES["orpo"] = Loss(orpo, rows=PAIRS)

if __name__ == "__main__":
    model, dataset = load_model("smollm2-135m"), load_dataset(sys.argv[1])
    config = TrainConfig(loss="orpo", learning_rate=1e-4, epochs=1)
    print(train(model, dataset.train, dataset.val, config, Path(sys.argv[2])))
