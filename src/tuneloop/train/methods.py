"""What is trained: all weights, LoRA matrices on a plain or a 4-bit base, or a prefix.

The loop is one; a method says which parameters it moves and how they are saved. A new method is a function from `Start`
to `Trainable`, and a row in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_json, sha256_file, write_json
from tuneloop.models.load import Model
from tuneloop.train.batches import ORDER
from tuneloop.train.config import TrainConfig
from tuneloop.train.distributed import is_first, is_sharded, refuse_unsharded, regroup, shard
from tuneloop.train.rows import TrainRow, conversations

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tuneloop.models.lora import LoraShape


@dataclass(frozen=True)
class Start:
    """What a method begins with: the base model, its settings, the seed, and the training rows."""

    model: Model
    config: TrainConfig
    seed: int
    rows: Sequence[TrainRow] = ()


@dataclass(frozen=True)
class Trainable:
    """What a run moves, put into its model.

    Args:
        parameters: by name.
        save: write what the model is now into a folder, whole or not at all; of several processes the first writes, and all call.
        detach: take it out of the model again.
        untouched: a context in which the model computes as before training; does nothing where that is not to be had.
        ratios: learning rate of a parameter as a multiple, where it is not 1.
        ready: called with a parameter when a backward pass has its whole gradient; heard by `full` alone.
        folder: name of the result in the run's folder.
    """

    parameters: dict[str, nn.Parameter]
    save: Callable[[Path], None]
    detach: Callable[[], None]
    untouched: Callable[[], AbstractContextManager[None]] = nullcontext
    ratios: dict[str, float] = field(default_factory=dict)
    ready: list[Callable[[nn.Parameter], None]] = field(default_factory=list)
    folder: str = "adapter"

    def state(self) -> dict[str, Tensor]:
        """The parameters, copied."""
        copies = {name: p.detach().clone() for name, p in self.parameters.items()}
        return {name: p if is_sharded(p) else p.cpu().contiguous() for name, p in copies.items()}

    def load(self, state: dict[str, Tensor], where: str) -> None:
        """Copy parameters in by name.

        Raises:
            UserError: one is missing or has another shape.
        """
        from tuneloop.models.lora import copy_tensors

        copy_tensors(state, self.parameters, where)


def attach(model: Model, config: TrainConfig, seed: int, rows: Sequence[TrainRow] = ()) -> Trainable:
    """Put what is to be trained into the model, as it is before the first step.

    Args:
        seed: of the start values.
        rows: training rows; a prefix starts from the first ones.

    Raises:
        UserError: the method is impossible here, or `config.init` does not fit.
    """
    refuse_unsharded(model, config.method)
    shard(model, quantised=config.method == "qlora")
    regroup(model)
    trainable = METHODS[config.method](Start(model, config, seed, rows))
    if config.init:
        _go_on_from(Path(config.init), model, config, trainable)
    return trainable


def lora_shape(model: Model, config: TrainConfig) -> LoraShape:
    """The LoRA adapter that the configuration asks for on this model."""
    from tuneloop.models.lora import LoraShape, target_names

    return LoraShape(
        config.rank,
        config.alpha,
        config.dropout,
        target_names(model.net, config.targets),
        tuple(config.ranks.items()),
        config.rslora,
        config.dora,
        config.lora_init,
    )


def lora(start: Start, *, quantised: bool = False) -> Trainable:
    """Low-rank updates of linear layers.

    B starts at zero and has the larger role in early learning, so one rate for both is too low for B or too high for A
    (LoRA+, Hayou et al. 2024, arXiv 2402.12354): B learns at `lora_plus` times the rate. PiSSA starts both alike.
    """
    from tuneloop.models.lora import (
        adapter_parameters,
        adapter_state,
        add_lora,
        lora_disabled,
        remove_lora,
        save_adapter,
    )

    model, config = start.model, start.config
    net = model.net
    remove_lora(net)
    shape = lora_shape(model, config)
    add_lora(net, shape, start.seed)
    parameters = adapter_parameters(net)
    plus = config.lora_plus if config.lora_init == "default" else 1.0

    def save(folder: Path) -> None:
        if not is_first():
            return
        state = adapter_state(net)
        save_adapter(folder, state, shape, _base_name(model), model.fingerprint, quantised=quantised)
        model.template.save(folder)

    return Trainable(
        parameters,
        save,
        detach=lambda: remove_lora(net),
        untouched=lambda: lora_disabled(net),
        ratios={name: plus for name in parameters if ".lora_B." in name},
    )


def qlora(start: Start) -> Trainable:
    """LoRA on a base that is held in 4 bits; it stays so when the adapter is taken out."""
    from tuneloop.models.quantised import quantise

    quantise(start.model.net)
    return lora(start, quantised=True)


def prefix(start: Start) -> Trainable:
    """Keys and values of virtual tokens in front of every row, starting as those of real text.

    The text is `prefix_text`, else the first training rows one after another: they begin with the instruction.
    """
    from tuneloop.models.prefix import NAME, add_prefix, prefix_disabled, remove_prefix, save_prefix

    model, config = start.model, start.config
    net = model.net
    remove_prefix(net)
    if config.prefix_text:
        texts = [model.template.encode(config.prefix_text)]
    else:
        texts = [conversations(row)[0].ids for row in start.rows]
    ids: list[int] = []
    while len(ids) < config.prefix_tokens and any(texts):
        ids += [i for text in texts[: config.prefix_tokens] for i in text]
    if not ids:
        raise UserError(
            "There is no text that the prefix could start from", where="train.prefix_text", next_step="set it"
        )
    virtual = add_prefix(net, ids[: config.prefix_tokens])

    def save(folder: Path) -> None:
        if not is_first():
            return
        save_prefix(folder, net, _base_name(model), model.fingerprint)
        model.template.save(folder)

    return Trainable(
        {NAME: virtual.embeddings},
        save,
        detach=lambda: remove_prefix(net),
        untouched=lambda: prefix_disabled(net),
    )


def full(start: Start) -> Trainable:
    """All weights, in the dtype that the model computes in; the optimizers keep what rounding to bf16 takes away."""
    model = start.model
    parameters = dict(model.net.requires_grad_(True).named_parameters())
    ready: list[Callable[[nn.Parameter], None]] = []

    def tell(weight: Tensor) -> None:
        for call in ready:
            call(cast("nn.Parameter", weight))

    hooks = [p.register_post_accumulate_grad_hook(tell) for p in parameters.values()]  # type: ignore[no-untyped-call]

    def detach() -> None:
        for hook in hooks:
            hook.remove()
        model.net.requires_grad_(False)

    return Trainable(parameters, lambda folder: save_model(folder, model), detach, ready=ready, folder="model")


METHODS: dict[str, Callable[[Start], Trainable]] = {"full": full, "lora": lora, "qlora": qlora, "prefix": prefix}


def save_model(folder: Path, model: Model) -> None:
    """Write all weights with configuration and tokenizer, as Transformers loads them; `tuneloop.json` comes last."""
    from safetensors.torch import save

    from tuneloop.core.files import write_bytes
    from tuneloop.models.lora import state_hash
    from tuneloop.models.sharded import whole

    state = {}
    for name, p in model.net.named_parameters():  # one at a time: a device holds its share and one of them
        tensor = whole(p.detach())
        if is_first():
            state[name] = tensor.cpu().contiguous()
    if not is_first():
        return
    write_bytes(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    kind = str(next(iter(state.values())).dtype).removeprefix("torch.")
    config = {key: value for key, value in model.config.items() if key not in ("torch_dtype", "quantization_config")}
    write_json(folder / "config.json", {**config, "dtype": kind})
    generation = model.folder / "generation_config.json"
    if generation.is_file():
        write_json(folder / "generation_config.json", read_json(generation))
    model.template.save(folder)
    write_json(
        folder / "tuneloop.json", {"version": 1, "base_fingerprint": model.fingerprint, "hash": state_hash(state)}
    )


def init_hash(config: TrainConfig) -> str:
    """Identity of the weights that `config.init` names; empty without."""
    from tuneloop.models.trained import trained_folder

    if not config.init:
        return ""
    folder = trained_folder(Path(config.init))
    own = folder / "tuneloop.json"
    return str(read_json(own)["hash"]) if own.is_file() else sha256_file(folder / "adapter_model.safetensors")


def _go_on_from(run: Path, model: Model, config: TrainConfig, trainable: Trainable) -> None:
    """Start from what an earlier run came to.

    Raises:
        UserError: it was another method, another shape or another base model.
    """
    from tuneloop.models.load import read_weights
    from tuneloop.models.lora import read_adapter, shape_of
    from tuneloop.models.trained import trained_folder

    folder = trained_folder(run)
    where = f"train.init={run}"
    is_adapter = (folder / "adapter_config.json").is_file()
    kind = read_json(folder / "adapter_config.json").get("peft_type") if is_adapter else "full"
    wanted = {"full": "full", "prefix": "PREFIX_TUNING"}.get(config.method, "LORA")
    if kind != wanted:
        step = f"set model={folder}" if kind == "full" else "set train.method to the earlier run's"
        raise UserError(f"That run trained {kind}, and this one is {config.method}", where=where, next_step=step)
    if kind == "full":
        own = read_json(folder / "tuneloop.json")
        if own["base_fingerprint"] != model.fingerprint:
            raise UserError("That run had another base model", where=where, next_step=f"set model={folder}")
        trainable.load(read_weights(folder), str(folder))
        return
    settings, state = read_adapter(folder, model.fingerprint)
    if kind == "LORA":
        if config.lora_init != "default":
            raise UserError(
                "An earlier adapter and train.lora_init exclude each other",
                where=where,
                next_step="leave one of them out",
            )
        earlier, now = shape_of(model.net, settings), lora_shape(model, config)
        pairs = [("rank", earlier.rank, now.rank), ("alpha", earlier.alpha, now.alpha), ("rslora", earlier.rslora, now.rslora),
                 ("dora", earlier.dora, now.dora), ("targets", list(earlier.targets), list(now.targets)),
                 ("ranks", dict(earlier.ranks), dict(now.ranks))]  # fmt: skip
        for name, then, here in pairs:
            if then != here:
                raise UserError(
                    f"The earlier adapter has {name} {then}, and this run {here}",
                    where=where,
                    next_step=f"set train.{name}={str(then).replace(chr(39), '')}",
                )
    trainable.load(state, str(folder))


def run_key(model: Model, config: TrainConfig, seed: int, data_id: str) -> str:
    """Hash of what a run's steps depend on."""
    return content_hash([config, seed, data_id, model.fingerprint, init_hash(config), ORDER])


def _base_name(model: Model) -> str:
    """What PEFT can load the base from: the hub name, or the folder."""
    return model.name if "/" in model.name and not Path(model.name).exists() else str(model.folder)
