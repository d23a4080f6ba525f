"""The record in which a training method describes itself, and what passes between a method and the trainer. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tuneloop.core.files import Config
from tuneloop.models.adapters import BASE, applied
from tuneloop.models.shape import ModelShape
from tuneloop.models.sharded import copied

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tuneloop.models.load import Model

WHOLE = "full"  # layout of a folder with all weights


class PlannedJob(Protocol):
    """What the planner knows of a job before anything is loaded: sizes, rank and places of low-rank matrices, virtual tokens."""

    @property
    def shape(self) -> ModelShape: ...
    @property
    def rank(self) -> int: ...
    @property
    def targets(self) -> tuple[str, ...]: ...
    @property
    def prefix_tokens(self) -> int: ...


@dataclass(frozen=True)
class Footprint:
    """What a method adds to the planner's memory and time.

    Args:
        trained: parameters that learn, of a planned job.
        all_weights: the base's own weights learn: they all have gradients, optimizer states and what masters they need,
            and all products keep their inputs and are computed a third time, for the weights' gradients.
        low_rank: each target matrix has two narrow ones next to it: it keeps its input, and narrow activations come on top.
        flops: operations of a token for each trained parameter, in addition to the base model's own products.
        has_virtual_tokens: `prefix_tokens` of them are in front of each row, in attention alone.
        virtual_widths: elements that a virtual token keeps in a layer, in widths of queries and keys.
        quant: how frozen matrices are kept by default: `none`, or in four bits, as in `nf4-dq`.
        usual: settings of a planned job by default. usual_on_gpu: those on a GPU.
        saves: why this method needs less memory than another; empty where it is no way out of too little memory.
        saves_over: whether it needs less than a method with another footprint.
    """

    trained: Callable[[PlannedJob], int]
    all_weights: bool = False
    low_rank: bool = False
    flops: int = 0
    has_virtual_tokens: bool = False
    virtual_widths: int = 0
    quant: str = "none"
    usual: Mapping[str, Any] = field(default_factory=dict)
    usual_on_gpu: Mapping[str, Any] = field(default_factory=dict)
    saves: str = ""
    saves_over: Callable[[Footprint], bool] = lambda other: True


@dataclass(frozen=True)
class Start:
    """What a method begins with.

    Args:
        model: the base model.
        settings: those of `train`; a method reads its own.
        seed: of the start values.
        texts: token ids of the first conversation of each training row.
    """

    model: Model
    settings: Config
    seed: int
    texts: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Trainable:
    """What a run moves, put into its model.

    Args:
        parameters: by name.
        save: write what the model is now into a folder, whole or not at all; of several processes the first writes, and all call.
        detach: take it out of the model again.
        base: a context in which the model computes as before training; does nothing where that is not to be had.
        ratios: learning rate of a parameter as a multiple, where it is not 1.
        ready: called with a parameter when a backward pass has its whole gradient, by methods that know it.
        folder: name of the result in the run's folder.
    """

    parameters: dict[str, nn.Parameter]
    save: Callable[[Path], None]
    detach: Callable[[], None]
    base: Callable[[], AbstractContextManager[None]] = nullcontext
    ratios: dict[str, float] = field(default_factory=dict)
    ready: list[Callable[[nn.Parameter], None]] = field(default_factory=list)
    folder: str = "adapter"

    def state(self) -> dict[str, Tensor]:
        """The parameters, copied: to the host's memory, but for those that are divided over processes."""
        return {name: copied(p.detach()) for name, p in self.parameters.items()}

    def load(self, state: dict[str, Tensor], where: str) -> None:
        """Copy parameters in by name.

        Raises:
            UserError: one is missing or has another shape.
        """
        from tuneloop.models.lora import copy_tensors

        copy_tensors(state, self.parameters, where)


@dataclass(frozen=True)
class WeightUpdate:
    """What merging an adapter does to the base's tensors.

    Args:
        names: tensors that change.
        apply: name, base weight -> base weight as it was trained on, merged weight (both fp32).
    """

    names: frozenset[str]
    apply: Callable[[str, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Method:
    """All that the planner, the trainer, reports, exports and loaders need to know of a training method.

    A method that saves a whole model leaves out everything from `layout` on.

    Args:
        name: as `train.method` and `run.json` have it.
        title: as people read it.
        about: what is trained, in a few words.
        learning_rate: peak rate of the supervised loss where none is given.
        attach: put what is trained into the model, as it is before the first step.
        footprint: what the planner counts.
        long_title: of the model card, where the title alone says too little.
        settings: its settings in `train`, with their defaults and checks.
        exclusive: of those the ones that are refused with a method that does not have them, and why, if that needs saying.
        conflict: what is wrong with the settings of `train` together, in a sentence; None: nothing.
        layout: what says in the saved folder whose it is: `peft_type` of `adapter_config.json`, or `WHOLE`.
        folder: name of the result in the run's folder.
        quantised: how `tuneloop.json` next to an adapter says that the base was held in fewer bits; empty: it was not.
        prepare: bring frozen modules, in place, to the form in which they are trained on.
        load: put a saved folder into its base model.
        load_alongside: load a saved folder next to other adapters on one base, and return its hash, by which requests name it; None: it
            can't stand next to others.
        resume: the parameters of an earlier run's folder, for settings that must have the same shape.
        disabled: a context in which a model computes without what was attached; None: the base model is gone.
        merge: what a saved folder does to the weight files of a base model; None: it can't be merged.
        forms: of an export, the usual one first. no_form: why another one can't be had.
        peft_base: further arguments with which Transformers loads the base for PEFT, and the class they need, for the model card.
        source: hash of the user's own file that describes it.
    """

    name: str
    title: str
    about: str
    learning_rate: float
    attach: Callable[[Start], Trainable]
    footprint: Footprint
    long_title: str = ""
    settings: type[Config] | None = None
    exclusive: Mapping[str, str] = field(default_factory=dict)
    conflict: Callable[[Any], str | None] = lambda settings: None
    layout: str = WHOLE
    folder: str = "model"
    quantised: str = ""
    prepare: Callable[[nn.Module], None] | None = None
    load: Callable[[Model, Path], None] | None = None
    load_alongside: Callable[[Model, Path], str] | None = None
    resume: Callable[[Model, Any, Path], dict[str, Tensor]] | None = None
    disabled: Callable[[nn.Module], AbstractContextManager[None]] | None = None
    merge: Callable[[Path, Path], WeightUpdate] | None = None
    forms: tuple[str, ...] = ("merged",)
    no_form: Mapping[str, str] = field(default_factory=dict)
    peft_base: tuple[str, str] = ("", "")
    source: str = ""

    @property
    def how(self) -> str:
        """What follows "tune": `all weights`, or `with` the method."""
        return "all weights" if self.footprint.all_weights else f"with {self.title}"


def without_adapters(net: nn.Module) -> AbstractContextManager[None]:
    """The base model for a while, in this thread: for methods whose layers ask which adapter applies."""
    return applied(BASE)


def base_name(model: Model) -> str:
    """What PEFT can load the base from: the hub name, or the folder."""
    return model.name if "/" in model.name and not Path(model.name).exists() else str(model.folder)
