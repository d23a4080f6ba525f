"""A method of your own: BitFit's cousin for Llama, which has no biases: learn the scales of the norms and nothing else.

Run it: tuneloop run tickets.csv train.method=examples/extend/new_method.py
Plan it: tuneloop plan -m llama-3.1-8b --method examples/extend/new_method.py
"""

from tuneloop.models.methods import Footprint, Method, Start, Trainable, save_model


def attach(start: Start) -> Trainable:
    """Let the norms learn, in fp32; they are saved within a whole model, which any tool loads."""
    net = start.model.net.requires_grad_(False)
    parameters = {name: p for name, p in net.named_parameters() if "norm" in name}
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return Trainable(
        parameters, save=lambda folder: save_model(folder, start.model), detach=lambda: net.requires_grad_(False)
    )


NORMS = Method(
    name="norms",
    title="norm scales",
    about="the scales of the norms",
    learning_rate=1e-2,
    attach=attach,
    footprint=Footprint(trained=lambda job: (2 * job.shape.layers + 1) * job.shape.hidden),
)
