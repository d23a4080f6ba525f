"""`tuneloop plan prices`: the table of GPU prices, and fetching newer ones."""

from __future__ import annotations

from collections.abc import Sequence

from tuneloop.cli.console import print_json
from tuneloop.core.errors import UserError
from tuneloop.plan.gpus import all_gpus
from tuneloop.plan.prices import TIERS, load_prices, update_prices


def prices(words: Sequence[str], own: str | None, as_json: bool) -> None:
    """Show the price of every GPU, or with `update` fetch newer offers first.

    Args:
        words: what stands after `tuneloop plan prices`: nothing, or `update`.
        own: the user's price file.
        as_json: print one JSON object.
    """
    if list(words) not in ([], ["update"]):
        step = "tuneloop plan prices, or tuneloop plan prices update"
        raise UserError(f"No such thing to do with prices: {' '.join(words)}", where="plan prices", next_step=step)
    fetched = update_prices() if words else None
    table = load_prices(own)
    found = {gpu: {tier: offers[0] for tier in TIERS if (offers := table.offers(gpu, tier))} for gpu in all_gpus()}
    if as_json:
        print_json({"fetched": fetched, "prices": found})
        return
    if fetched:
        print(f"{fetched['offers']:,} offers of {', '.join(fetched['providers'])} in {fetched['path']}")
    for gpu, tiers in found.items():
        for i, price in enumerate(tiers.values()):
            print(f"{gpu if not i else '':14}{price.words()}")
        if not tiers:
            print(f"{gpu:14}no price")
