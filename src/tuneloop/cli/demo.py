"""`tuneloop demo`: the main job on packaged data."""

from __future__ import annotations

from functools import partial

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import SETTINGS, VERBOSE, screen


def command(settings: list[str] | None = SETTINGS, *, verbose: bool = VERBOSE) -> Result:
    """Do the whole job on packaged data, in minutes.

    Mails go in, cards in JSON come out, and each alternative stands next to the tuned model. It needs no GPU, no
    account and, once its model is here, no network. It writes `demo/` (data, recipe, prompt) and `runs/` into the
    working folder. Settings are those of a recipe, as in `tuneloop demo max_minutes=2`.
    """
    from tuneloop.pipeline.demo import demo_recipe, fetch_models

    recipe = demo_recipe(settings or [])
    from tuneloop.pipeline import run_job, summary
    from tuneloop.pipeline.demo import print_demo

    with screen("running", brief=not verbose):
        fetch_models()
        folder = run_job(recipe, anyway=True)  # it shows how a run goes, in any time
    return Result(summary(folder), partial(print_demo, folder, verbose=verbose))
