"""The record in which a training method describes itself, and what it gives to the trainer. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tuneloop.core.files import Config
from tuneloop.core.sharded import copied
from tuneloop.models.adapters.assignment import BASE, applied
from tuneloop.models.nn.shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tuneloop.models.load import Model

WHOLE = "full"  # layout of a folder with all weights


class PlannedJob(Protocol):
    """What the planner knows of a job before anything is loaded."""

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
    """What a method adds to the planner's memory and time."""

    trained: Callable[[PlannedJob], int]  # parameters that learn, of a planned job
    # The base's own weights learn: they all have gradients, optimizer states and what masters they need, and all
    # products keep their inputs and are computed a third time, for the weights' gradients.
    all_weights: bool = False
    low_rank: bool = False  # each target matrix keeps its input, and two narrow ones add narrow activations
    flops: int = 0  # operations of a token for each trained parameter, in addition to the base model's own products
    has_virtual_tokens: bool = False  # `prefix_tokens` of them are in front of each row, in attention alone
    virtual_widths: int = 0  # elements that a virtual token keeps in a layer, in widths of queries and keys
    quant: str = "none"  # how frozen matrices are kept by default: `none`, or in four bits, as in `nf4-dq`
    usual: Mapping[str, Any] = field(default_factory=dict)  # settings of a planned job by default
    usual_on_gpu: Mapping[str, Any] = field(default_factory=dict)  # those on a GPU
    saves: str = ""  # why this method needs less memory than another; empty where it is no way out of too little memory
    saves_over: Callable[[Footprint], bool] = lambda other: True  # whether it needs less than that method


@dataclass(frozen=True)
class Start:
    """What a method begins with."""

    model: Model  # the base model
    settings: Config  # those of `train`; a method reads its own
    seed: int  # of the start values
    texts: Sequence[Sequence[int]] = ()  # token ids of the first conversation of each training row


@dataclass(frozen=True)
class Trainable:
    """What a run moves, put into its model."""

    parameters: dict[str, nn.Parameter]  # by name
    save: Callable[[Path], None]  # write it into a folder, whole or not at all; all processes call, the first writes
    detach: Callable[[], None]  # take it out of the model again
    # A context in which the model computes as before training; does nothing where that is impossible.
    base: Callable[[], AbstractContextManager[None]] = nullcontext
    ratios: dict[str, float] = field(default_factory=dict)  # a parameter's multiple of the learning rate, where not 1
    # Called with a parameter when a backward pass has its whole gradient, by methods that know it.
    ready: list[Callable[[nn.Parameter], None]] = field(default_factory=list)
    folder: str = "adapter"  # name of the result in the run's folder

    def state(self) -> dict[str, Tensor]:
        """The parameters, copied: to the host's memory, but for those that are divided over processes."""
        return {name: copied(p.detach()) for name, p in self.parameters.items()}

    def load(self, state: dict[str, Tensor], where: str) -> None:
        """Copy parameters in by name. Raises UserError: one is missing or has another shape."""
        from tuneloop.models.adapters.lora import copy_tensors

        copy_tensors(state, self.parameters, where)


@dataclass(frozen=True)
class WeightUpdate:
    """What merging an adapter does to the base's tensors."""

    names: frozenset[str]  # tensors that change
    # Name, base weight -> base weight as it was trained on, merged weight (both fp32).
    apply: Callable[[str, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Method:
    """All that the planner, the trainer, reports, exports and loaders need to know of a training method. A method that
    saves a whole model leaves out everything from `layout` on."""

    name: str  # as `train.method` and `run.json` have it
    title: str  # as people read it
    about: str  # what is trained, in a few words
    learning_rate: float  # peak rate of the supervised loss where none is given
    attach: Callable[[Start], Trainable]  # put what is trained into the model, as it is before the first step
    footprint: Footprint  # what the planner counts
    long_title: str = ""  # of the model card, where the title alone says too little
    settings: type[Config] | None = None  # its settings in `train`, with their defaults and checks
    own_model: bool = False  # it works with our own model alone, not with those that Transformers computes
    exclusive: Mapping[str, str] = field(default_factory=dict)  # settings that other methods refuse -> why, or ""
    conflict: Callable[[Any], str | None] = lambda settings: None  # what contradicts in `train`, in a sentence
    layout: str = WHOLE  # what says in the saved folder whose it is: `peft_type` of `adapter_config.json`, or `WHOLE`
    folder: str = "model"  # name of the result in the run's folder
    quantised: str = ""  # in `tuneloop.json` next to an adapter if the base was held in fewer bits
    prepare: Callable[[nn.Module], None] | None = None  # bring frozen modules, in place, to the form for training
    load: Callable[[Model, Path], None] | None = None  # put a saved folder into its base model
    # Load a saved folder as one of several adapters on one base, and return its hash; None: it can't share a base.
    add: Callable[[Model, Path], str] | None = None
    # The parameters of an earlier run's folder, for settings that must have the same shape.
    resume: Callable[[Model, Any, Path], dict[str, Tensor]] | None = None
    # A context in which a model computes without what was attached; None: the base model was overwritten.
    disabled: Callable[[nn.Module], AbstractContextManager[None]] | None = None
    # What a saved folder does to the weight files of a base model; None: it can't be merged.
    merge: Callable[[Path, Path], WeightUpdate] | None = None
    forms: tuple[str, ...] = ("merged",)  # of an export, the usual one first
    no_form: Mapping[str, str] = field(default_factory=dict)  # why another one can't be had
    # Further arguments with which Transformers loads the base for PEFT, and the class they need, for the model card.
    peft_base: tuple[str, str] = ("", "")
    source: str = ""  # hash of the user's own file that describes it

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
