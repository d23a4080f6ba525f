"""LoRA: low-rank updates of linear layers on a frozen base (Hu et al. 2021, arXiv 2106.09685), see adapters/lora.py.

Variants: rank-stabilised scale (`rslora`), learned lengths of the weights (`dora`), ranks by module (`ranks`), a higher
rate for B (`lora_plus`). All are saved in PEFT's layout as LORA.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from tuneloop.core.confined import TEXT
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config, read_json_object
from tuneloop.core.machine import is_first
from tuneloop.models.adapters.peft_layout import PEFT_PREFIX
from tuneloop.models.methods.method import (
    Footprint,
    Method,
    PlannedJob,
    Start,
    Trainable,
    WeightUpdate,
    base_name,
    without_adapters,
)
from tuneloop.models.nn.shape import target_modules

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tuneloop.models.adapters.lora import LoraShape
    from tuneloop.models.load import Model


class LoraSettings(Config):
    """Settings of `train` that belong to LoRA."""

    rank: int = Field(16, ge=1, le=1024, description="rank of the LoRA matrices")
    ranks: Annotated[dict[str, int], TEXT] = Field(
        {}, description="rank of modules where it differs, by name endings: {q_proj: 8}"
    )
    alpha: float = Field(32.0, gt=0, description="LoRA scale; the update is multiplied by alpha / rank")
    rslora: bool = Field(False, description="multiply the update by alpha / sqrt(rank) instead")
    dora: bool = Field(False, description="learn the lengths of the weights as well (DoRA)")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout on the adapter's input")
    targets: Annotated[list[str] | Literal["all-linear", "attention"], TEXT] = Field(
        "all-linear", description="modules that get an adapter: all-linear, attention, or names as in [q_proj, v_proj]"
    )
    lora_plus: float = Field(10.0, gt=0, description="learning rate of LoRA's B matrices over that of the A matrices")

    @field_validator("targets", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if isinstance(value, str) and value not in ("all-linear", "attention"):
            return [name.strip() for name in value.split(",")]
        return value

    @field_validator("ranks")
    @classmethod
    def _sane_ranks(cls, value: dict[str, int]) -> dict[str, int]:
        for name, rank in value.items():
            if not 1 <= rank <= 1024:
                raise ValueError(f"the rank of {name} must be between 1 and 1024")
        return value


def lora_shape(model: Model, settings: LoraSettings) -> LoraShape:
    """The adapter that the settings describe on this model."""
    from tuneloop.models.adapters.lora import LoraShape, target_names

    targets, ranks = target_names(model.net, settings.targets), tuple(settings.ranks.items())
    same = {name: getattr(settings, name) for name in ("rank", "alpha", "dropout", "rslora", "dora")}
    return LoraShape(**same, targets=targets, ranks=ranks)


def attach(start: Start, *, quantised: bool = False) -> Trainable:
    """Put low-rank matrices next to the target layers of a base, held in four bits if `quantised`. B starts at zero and
    has the larger role in early learning, so one rate for both is too low for B or too high for A (LoRA+, Hayou et al.
    2024, arXiv 2402.12354): B learns at `lora_plus` times the rate."""
    from tuneloop.models.adapters.lora import adapter_parameters, adapter_state, add_lora, remove_lora, save_adapter

    model, settings = start.model, start.settings
    assert isinstance(settings, LoraSettings)
    net = model.net
    if quantised:
        prepare(net)
    remove_lora(net)
    shape = lora_shape(model, settings)
    add_lora(net, shape, start.seed)
    parameters = adapter_parameters(net)

    def save(folder: Path) -> None:
        if is_first():
            state = adapter_state(net)
            save_adapter(folder, state, shape, base_name(model), model.fingerprint, quantised=quantised)
            model.template.save(folder)

    ratios = {name: settings.lora_plus for name in parameters if ".lora_B." in name}
    return Trainable(parameters, save, detach=lambda: remove_lora(net), ratios=ratios)


def load_adapter(model: Model, folder: Path) -> None:
    """Put a saved adapter into its base model."""
    from tuneloop.models.adapters import lora

    lora.load_adapter(model.net, folder, model.fingerprint)


def resume(model: Model, settings: Any, folder: Path) -> dict[str, Tensor]:
    """The matrices of an earlier run. Raises UserError: it had another base or shape."""
    from tuneloop.models.adapters.lora import read_adapter, shape_of

    where = f"train.init={settings.init}"
    saved, state = read_adapter(folder, model.fingerprint)
    earlier, now = (
        {**vars(shape), "targets": list(shape.targets), "ranks": dict(shape.ranks)}
        for shape in (shape_of(model.net, saved), lora_shape(model, settings))
    )
    for name in ("rank", "alpha", "rslora", "dora", "targets", "ranks"):
        if earlier[name] != now[name]:
            message = f"The earlier adapter has {name} {earlier[name]}, and this run {now[name]}"
            raise UserError(
                message, where=where, next_step=f"set train.{name}={str(earlier[name]).replace(chr(39), '')}"
            )
    return state


def add(model: Model, folder: Path) -> str:
    """Load a saved adapter next to others."""
    from tuneloop.models.adapters.lora import add_saved_lora

    return add_saved_lora(model.net, folder, model.fingerprint)


def merge(base: Path, adapter: Path) -> WeightUpdate:
    """Add the update to the weights that it was trained on: those of a base in four bits are what the four bits say.
    `base`: folder of the base model. adapter: in PEFT's layout (LoRA, DoRA, ranks by module)."""
    from tuneloop.models.adapters.lora import merged_weight, read_adapter, shape_of
    from tuneloop.models.load import fingerprint, skeleton
    from tuneloop.models.nn.quantised import need_bitsandbytes, quantisable, through_four_bits

    settings, state = read_adapter(adapter, fingerprint(base))
    net = skeleton(base)
    shape = shape_of(net, settings)
    ends = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")
    stems = {key.removesuffix(end).removeprefix(PEFT_PREFIX) for key in state for end in ends if key.endswith(end)}
    adapted = {f"{stem}.weight": stem for stem in stems}
    packed: set[str] = set()
    if read_json_object(adapter / "tuneloop.json").get("quantised"):
        need_bitsandbytes()
        packed = {f"{name}.weight" for name in quantisable(net)}

    def apply(name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        base_weight = through_four_bits(weight.float()) if name in packed else weight.float()
        if name not in adapted:
            return base_weight, base_weight
        a, b, magnitude = (state.get(f"{PEFT_PREFIX}{adapted[name]}{end}") for end in ends)
        assert a is not None and b is not None, "an adapter's matrices come in pairs"
        return base_weight, merged_weight(base_weight, a, b, shape.scale_of(adapted[name]), magnitude)

    return WeightUpdate(frozenset(adapted) | packed, apply)


def trained(job: PlannedJob) -> int:
    """rank * (inputs + outputs) for each adapted matrix of each layer; joined ones have one adapter."""
    ends = job.shape.adapted(target_modules(job.targets)).values()
    return job.shape.layers * sum(job.rank * sum(sizes) for sizes in ends)


LORA = Method(
    name="lora",
    title="LoRA",
    about="low-rank updates of linear layers",
    learning_rate=5e-4,
    attach=attach,
    footprint=Footprint(
        trained=trained,
        low_rank=True,
        flops=6,  # two products of a multiplication and an addition: forward, and for both gradients
        saves="only an adapter has gradients and optimizer states",
        saves_over=lambda other: other.all_weights,
    ),
    settings=LoraSettings,
    exclusive={"dora": ""},
    layout="LORA",
    folder="adapter",
    load=load_adapter,
    add=add,
    resume=resume,
    disabled=without_adapters,
    merge=merge,
    forms=("merged", "adapter"),
)


# --- QLoRA: LoRA on a base in four bits (Dettmers et al. 2023, arXiv 2305.14314), see nn/quantised.py. The frozen
# matrices are brought to NF4 with double quantisation and stay so when the adapter is taken out; `tuneloop.json` next
# to the adapter says so; and merging adds the update to the four-bit weights.

_NF4 = """, quantization_config=BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
)"""


def prepare(net: nn.Module) -> None:
    """Bring all linear layers but the vocabulary projection to four bits, in place."""
    from tuneloop.models.nn.quantised import quantise

    quantise(net)


def load_on_four_bits(model: Model, folder: Path) -> None:
    """Put a saved adapter into its base model, in four bits."""
    prepare(model.net)
    load_adapter(model, folder)


QLORA = replace(
    LORA,
    name="qlora",
    title="QLoRA",
    about="LoRA on a base in 4 bits",
    long_title="QLoRA (LoRA on the base in four bits: NF4, double quantisation)",
    attach=partial(attach, quantised=True),
    footprint=replace(
        LORA.footprint,
        quant="nf4-dq",
        saves="frozen weights in 4 bits",
        saves_over=lambda other: not other.has_virtual_tokens,
    ),
    quantised="nf4",
    prepare=prepare,
    load=load_on_four_bits,
    peft_base=(_NF4, "BitsAndBytesConfig"),
)
