"""A method of your own: BitFit's cousin for Llama, which has no biases: learn the scales of the norms and nothing else.

Run it: python examples/extend/new_method.py DATASET OUT    (a folder made by `tuneloop prepare`)
"""

import sys
from pathlib import Path

from tuneloop.data.dataset import load_dataset
from tuneloop.models.load import load_model, use_threads
from tuneloop.train.config import TrainConfig
from tuneloop.train.loop import train
from tuneloop.train.methods import METHODS, Start, Trainable, save_model
from tuneloop.train.rows import training_rows


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


if __name__ == "__main__":
    METHODS["full"] = norms  # takes its place, and with it its settings
    use_threads()
    model, dataset = load_model("smollm2-135m", dtype="float32"), load_dataset(sys.argv[1])
    config = TrainConfig(method="full", learning_rate=1e-2, epochs=1)
    train_rows, val_rows = (training_rows(rows, model.template, config) for rows in (dataset.train, dataset.val))
    print(train(model, train_rows, val_rows, config, Path(sys.argv[2])))
