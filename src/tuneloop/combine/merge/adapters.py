"""LoRA adapters opened to be merged: what they are for, and their updates one module at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import (
    content_hash,
    nearest_path,
    read_json_object,
    user_errors_of_the_disk,
    write_bytes,
    write_json,
)
from tuneloop.core.foreign import BeyondLimits, load_safetensors, opened_safetensors
from tuneloop.models.adapters import (
    A_END,
    B_END,
    PEFT_PREFIX,
    SETTINGS,
    WEIGHTS,
    hash_of_adapter,
    more_than_matrices,
    rank_of,
    scale_of,
    stems_of,
)
from tuneloop.models.methods import OWN

if TYPE_CHECKING:
    from tuneloop.combine.merge.methods import Product

ALONE = "keep it on its own, next to the merged one"


@dataclass(frozen=True)
class MergeSettings:
    """How adapters are merged."""

    method: str = "svd"  # a name of `METHODS`
    weights: tuple[float, ...] = ()  # of each adapter; empty: 1 for each
    rank: int = 0  # of the result; 0: what the method says


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in PEFT's layout."""

    name: str  # as the user gave it
    folder: Path  # with `adapter_config.json`
    fingerprint: str  # of the base model that it was trained on
    settings: dict[str, Any]  # `adapter_config.json`

    @cached_property
    def hash(self) -> str:
        """Of its tensors and their scale."""
        return hash_of_adapter(self.folder)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, from the file's header."""
        with self._open() as source:
            return {name: tuple(source.get_slice(name).get_shape()) for name in source.keys()}  # noqa: SIM118

    @cached_property
    def modules(self) -> list[str]:
        """Names of the modules that it changes. Raises UserError: it holds no tensors, or others than A and B."""
        try:
            stems = stems_of(self.shapes)
        except ValueError as odd:
            raise self._refused(f"The adapter holds {odd}, which is no LoRA matrix", ALONE) from None
        if not stems:
            raise self._refused("The adapter is empty: it holds no tensors", "train it again, or leave it out")
        names = {f"{PEFT_PREFIX}{stem}{end}" for stem in stems for end in (A_END, B_END)}
        if missing := sorted(names - self.shapes.keys()):
            raise self._refused(f"The adapter file is damaged: {missing[0]} is missing", "restore it, or train again")
        return stems

    def rank(self, module: str) -> int:
        """Rank of a module's update; 0 where it leaves the module alone."""
        return self.shapes.get(f"{PEFT_PREFIX}{module}{A_END}", (0,))[0]

    def update(self, module: str) -> Product:
        """The update of a module in float64, its scale in b. Raises UserError: it holds NaN, or the file is damaged."""
        from tuneloop.combine.merge.methods import Product

        with self._open() as source:
            a, b = (source.get_tensor(f"{PEFT_PREFIX}{module}{end}").double() for end in (A_END, B_END))
        if not (a.isfinite().all() and b.isfinite().all()):
            raise self._refused(f"The adapter holds NaN or infinity in {module}", "train again, or restore it")
        return Product(b * scale_of(self.settings, module), a)

    def check_shapes(self, base: dict[str, tuple[int, ...]]) -> None:
        """Refuse an adapter that does not fit a base.

        `base`: (outputs, inputs) of each linear layer. Raises UserError: a module that the base does not have, or of
        another shape; a rank that the settings don't say.
        """
        step = "name adapters of one base; `--base MODEL` says which"
        for module in self.modules:
            a, b = (self.shapes[f"{PEFT_PREFIX}{module}{end}"] for end in (A_END, B_END))
            if module not in base:
                raise self._refused(f"The base model has no layer {module}", step)
            if len(a) != 2 or len(b) != 2 or (b[0], a[1]) != base[module] or a[0] != b[1]:
                shape = " x ".join(map(str, base[module]))
                raise self._refused(f"{module} has matrices of {b} and {a}, and the base's layer is {shape}", step)
            if a[0] != (rank := rank_of(self.settings, module)):
                raise self._refused(f"{module} has rank {a[0]}, and {SETTINGS} says {rank}", "restore the folder")

    def _open(self) -> Any:
        from safetensors import SafetensorError

        file = self.folder / WEIGHTS
        try:
            with user_errors_of_the_disk(file):
                return opened_safetensors(file)
        except (SafetensorError, BeyondLimits) as error:
            raise self._refused(f"The adapter file is damaged: {error}", "restore it, or train again") from None

    def _refused(self, message: str, step: str) -> UserError:
        return UserError(message, where=str(self.folder), next_step=step)


def open_adapter(name: str, folder: Path, fingerprint: str = "") -> Adapter:
    """An adapter that can be merged.

    `folder`: in PEFT's layout; `fingerprint`: of the base that it names, where its own folder (`tuneloop.json`) does
    not say it. Raises UserError: no adapter is there, or one of a kind that can't be merged; the way out is named.
    """
    if not (folder / SETTINGS).is_file():
        raise UserError("There is no adapter here", where=str(folder), next_step=nearest_path(folder / SETTINGS))
    settings: dict[str, Any] = read_json_object(folder / SETTINGS)
    if more := more_than_matrices(settings):
        raise UserError(f"Only plain LoRA updates can be merged, not {more}", where=name, next_step=ALONE)
    if not (folder / WEIGHTS).is_file():
        step = "save it as safetensors with PEFT"
        raise UserError(f"The adapter has no {WEIGHTS}", where=str(folder), next_step=step)
    about = read_json_object(folder / OWN) if (folder / OWN).is_file() else {}
    return Adapter(name, folder, str(about.get("base_fingerprint") or fingerprint), settings)


def check_together(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters that can't be one.

    Raises UserError: none, one given twice, other bases, tokenizers or prompts.
    """
    if not adapters:
        raise UserError("Merge what?", where="tuneloop merge", next_step="name two or more runs or adapters")
    seen: dict[str, Adapter] = {}
    first, conditions = adapters[0], list(_conditions(adapters[0].folder).values())
    for adapter in adapters:
        if adapter.hash in seen:
            message = f"The same adapter twice: {seen[adapter.hash].name} and {adapter.name}"
            raise UserError(message, where="tuneloop merge", next_step="name it once; --weights makes it count more")
        seen[adapter.hash] = adapter
        if adapter.fingerprint != first.fingerprint:
            message = f"{first.name} and {adapter.name} were trained on different base models"
            raise UserError(message, where=str(adapter.folder), next_step="merge adapters of one base only")
        for (name, here), there in zip(_conditions(adapter.folder).items(), conditions, strict=True):
            if here is not None and there is not None and here != there:
                message = f"{first.name} and {adapter.name} differ in their {name}"
                step = "train one of them again as the other was; or keep both"
                raise UserError(message, where=str(adapter.folder), next_step=step)


def _conditions(folder: Path) -> dict[str, str | None]:
    """What adapters that are merged must share; None where the folder does not say it."""
    tokenizer = _json_of(folder / "tokenizer.json")
    template = _json_of(folder / "tokenizer_config.json").get("chat_template")
    added = [(token.get("id"), token.get("content")) for token in tokenizer.get("added_tokens", [])]
    return {
        "tokenizer": content_hash([tokenizer.get("model", {}).get("vocab"), added]) if tokenizer else None,
        "chat template": template if isinstance(template, str) and template else None,
        "base in four bits": str(_json_of(folder / OWN).get("quantised", "")) if (folder / OWN).is_file() else None,
    }


def _json_of(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.is_file() else {}


def random_adapter(like: Adapter, out: Path, seed: int) -> Adapter:
    """A control, whose cost in a merge is not that of a second task.

    It has the shapes of another adapter and, in each matrix, normal entries of the same root mean square.
    """
    import torch
    from safetensors.torch import save

    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * tensor.float().square().mean().sqrt()
        for name, tensor in sorted(load_safetensors(like.folder / WEIGHTS).items())
    }
    write_bytes(out / WEIGHTS, save(state, metadata={"format": "pt"}))
    write_json(out / SETTINGS, like.settings)
    return replace(like, name=f"random for {like.name}", folder=out)
