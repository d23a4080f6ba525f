"""A method of your own: BitFit's cousin for Llama, which has no biases: learn the scales of the norms and nothing else.

Run it: python examples/extend/new_method.py DATASET OUT    (a folder made by `tuneloop prepare`)
"""

import sys
from pathlib import Path

from tuneloop import train
from tuneloop.data.dataset import load_dataset
from tuneloop.models.load import load_model
from tuneloop.train.config import TrainConfig
from tuneloop.train.methods import METHODS, Start, Trainable, save_model


def norms(start: Start) -> Trainable:
    """35 thousand of 135 million weights; saved as a whole model, which any tool loads."""
    net = start.model.net
    parameters = {name: p for name, p in net.named_parameters() if "norm" in name}
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return Trainable(
        parameters,
        save=lambda folder: save_model(folder, start.model),
        detach=lambda: net.requires_grad_(False),
        folder="model",
    )


METHODS["norms"] = norms

if __name__ == "__main__":
    model, dataset = load_model("smollm2-135m", dtype="float32"), load_dataset(sys.argv[1])
    config = TrainConfig(method="norms", learning_rate=1e-2, epochs=1)
    print(train(model, dataset.train, dataset.val, config, Path(sys.argv[2])))
