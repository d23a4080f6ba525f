"""A run's tuned weights, read one tensor at a time: an adapter is added to its base as each is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json_object
from tuneloop.models.load import weight_files
from tuneloop.models.methods import WeightUpdate
from tuneloop.models.names import resolve
from tuneloop.release.merged_weights import update_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TunedWeights:
    """Tensors by their names in Transformers.

    Args:
        config: `config.json`.
        files: the safetensors file of each tensor.
        shapes: of each tensor.
        update: what an adapter does to them; None: all weights were trained.
    """

    config: Mapping[str, Any]
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    update: WeightUpdate | None = None

    def tensor(self, name: str) -> Tensor:
        """A tensor: in fp32 where an adapter changes it, so that it is rounded once, else in the file's dtype.

        Raises:
            UserError: it can't be read, or holds NaN or infinity.
        """
        from safetensors import SafetensorError, safe_open

        file = self.files[name]
        try:
            with safe_open(file, "pt") as source:
                tensor: Tensor = source.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"Can't read the weights: {error}", where=str(file), next_step="download the model again"
            ) from None
        if self.update and name in self.update.names:
            tensor = self.update.apply(name, tensor)[1]
        if not tensor.sum(dtype=None).isfinite() and not tensor.isfinite().all():
            raise UserError(
                f"The weights hold NaN or infinity in {name}",
                where=str(file),
                next_step="train again, or mend the base",
            )
        return tensor


def open_tuned(model: str, trained: Path) -> TunedWeights:
    """The weights of a trained folder.

    Args:
        model: the base, by a name that resolves.
        trained: an adapter's folder or a whole model's.

    Raises:
        UserError: an adapter that can't be merged, another base, a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    is_adapter = (trained / "adapter_config.json").is_file()
    folder = resolve(model) if is_adapter else trained
    files, shapes = {}, {}
    for file in weight_files(folder):
        try:
            with safe_open(file, "pt") as source:
                for name in source.keys():  # noqa: SIM118 - it is no dictionary
                    files[name], shapes[name] = file, tuple(source.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"Can't read the weights: {error}", where=str(file), next_step="download the model again"
            ) from None
    update = update_of(folder, trained, files) if is_adapter else None
    return TunedWeights(read_json_object(folder / "config.json"), files, shapes, update)
