"""A run as what is shipped: artifacts in every format, measured again, pushed, reproduced."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # An exported folder, and what its manifest says of it.
    from tuneloop.release.artifact import Artifact as Artifact

    # A finished run becomes an artifact: weights, card, bill of materials, and its manifest last.
    from tuneloop.release.export import export_run as export_run

    # The formats that a run can be exported to, and what each needs.
    from tuneloop.release.formats import FORMS as FORMS

    # Format, quantisation and data type of an export: the command's options.
    from tuneloop.release.formats import WeightOptions as WeightOptions

    # An artifact goes to the Hugging Face hub in one commit.
    from tuneloop.release.hub import push as push

    # A prepared data set goes to the hub, with a card.
    from tuneloop.release.push_data import push_dataset as push_dataset

    # A run is trained again from what it was made of, and compared with itself.
    from tuneloop.release.repeat import reproduce as reproduce

    # The run that a run folder, an artifact or a registered version was made by.
    from tuneloop.release.repeat import run_of as run_of

    # What came out the same when a run was repeated.
    from tuneloop.release.reproduction import Reproduction as Reproduction

    # The weights of a base with a run's adapter merged, tensor by tensor.
    from tuneloop.release.tuned_weights import open_tuned as open_tuned

__getattr__, __dir__ = door(__name__)
