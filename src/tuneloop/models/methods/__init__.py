"""The training methods, each described by one `Method`: those that ship, and those that a user adds."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # `tuneloop.json`, next to trained weights.
    from tuneloop.models.methods.full import OWN as OWN

    # Settings of full fine-tuning.
    from tuneloop.models.methods.full import FullSettings as FullSettings

    # Write all weights, as Transformers loads them.
    from tuneloop.models.methods.full import save_model as save_model

    # Settings of LoRA.
    from tuneloop.models.methods.lora import LoraSettings as LoraSettings

    # The layout of a method that saves all weights.
    from tuneloop.models.methods.method import WHOLE as WHOLE

    # What a method adds to memory and time.
    from tuneloop.models.methods.method import Footprint as Footprint

    # All that the rest needs to know of a training method.
    from tuneloop.models.methods.method import Method as Method

    # What a method begins with.
    from tuneloop.models.methods.method import Start as Start

    # What a run moves, put into its model.
    from tuneloop.models.methods.method import Trainable as Trainable

    # What merging an adapter does to the base's tensors.
    from tuneloop.models.methods.method import WeightUpdate as WeightUpdate

    # Settings of prefix tuning.
    from tuneloop.models.methods.prefix import PrefixSettings as PrefixSettings

    # The methods that ship.
    from tuneloop.models.methods.shipped import SHIPPED as SHIPPED

    # The method by default.
    from tuneloop.models.methods.shipped import USUAL as USUAL

    # The model without what is attached to it, for a while.
    from tuneloop.models.methods.shipped import base_only as base_only

    # The method of a name; None for an unknown one.
    from tuneloop.models.methods.shipped import find_method as find_method

    # How a saved folder is laid out.
    from tuneloop.models.methods.shipped import layout_of as layout_of

    # The method of a name or a Python file.
    from tuneloop.models.methods.shipped import method_named as method_named

    # The method that loads a saved folder.
    from tuneloop.models.methods.shipped import method_of_folder as method_of_folder

    # All methods that there are.
    from tuneloop.models.methods.shipped import methods as methods

    # Their names as a sentence has them.
    from tuneloop.models.methods.shipped import names_of_methods as names_of_methods

    # Make a method of yours known.
    from tuneloop.models.methods.shipped import register as register

    # The title of a method, by its name.
    from tuneloop.models.methods.shipped import title_of as title_of

__getattr__, __dir__ = door(__name__)
