"""Adapters on a base model: PEFT's layout, which one applies to which row, several on one base."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The adapter that training has attached.
    from tuneloop.models.adapters.assignment import ATTACHED as ATTACHED

    # The base model, without adapters.
    from tuneloop.models.adapters.assignment import BASE as BASE

    # Passes within use these adapters: one for all rows, or one for each.
    from tuneloop.models.adapters.assignment import applied as applied

    # The adapter that applies to all rows now.
    from tuneloop.models.adapters.assignment import applied_now as applied_now

    # Whether rows have different adapters now.
    from tuneloop.models.adapters.assignment import is_mixed as is_mixed

    # The layers that may have an adapter.
    from tuneloop.models.adapters.lora import linear_places as linear_places

    # Settings and tensors of a PEFT folder.
    from tuneloop.models.adapters.lora import read_adapter as read_adapter

    # The layers that get an adapter, by their last name parts.
    from tuneloop.models.adapters.lora import target_names as target_names

    # The ending of the name of a matrix A.
    from tuneloop.models.adapters.peft_layout import A_END as A_END

    # The ending of the name of a matrix B.
    from tuneloop.models.adapters.peft_layout import B_END as B_END

    # The beginning of the names of tensors.
    from tuneloop.models.adapters.peft_layout import PEFT_PREFIX as PEFT_PREFIX

    # The file of an adapter's settings.
    from tuneloop.models.adapters.peft_layout import SETTINGS as SETTINGS

    # The file of an adapter's tensors.
    from tuneloop.models.adapters.peft_layout import WEIGHTS as WEIGHTS

    # Hash of what an adapter changes.
    from tuneloop.models.adapters.peft_layout import hash_of_adapter as hash_of_adapter

    # `adapter_config.json` of a LoRA.
    from tuneloop.models.adapters.peft_layout import lora_settings as lora_settings

    # What an adapter holds that plain matrices can't say.
    from tuneloop.models.adapters.peft_layout import more_than_matrices as more_than_matrices

    # The rank of a module.
    from tuneloop.models.adapters.peft_layout import rank_of as rank_of

    # The scale of a module's update.
    from tuneloop.models.adapters.peft_layout import scale_of as scale_of

    # The adapted modules, of the names of tensors.
    from tuneloop.models.adapters.peft_layout import stems_of as stems_of

    # The trained prefix that applies now.
    from tuneloop.models.adapters.prefix import applied_prefix as applied_prefix

    # Refuse an adapter that is not loaded.
    from tuneloop.models.adapters.shared import check_adapter as check_adapter

    # Let go of a shared model and its adapters.
    from tuneloop.models.adapters.shared import give_back as give_back

    # Merge an adapter into the base's weights.
    from tuneloop.models.adapters.shared import merge_adapter as merge_adapter

    # Load an adapter next to others of a shared model.
    from tuneloop.models.adapters.shared import shared_adapter as shared_adapter

    # A model that several users have.
    from tuneloop.models.adapters.shared import shared_model as shared_model

__getattr__, __dir__ = door(__name__)
