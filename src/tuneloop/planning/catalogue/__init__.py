"""What there is to plan with: GPUs, prices, sizes of models."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Numbers of GPUs in a machine that are planned for.
    from tuneloop.planning.catalogue.gpus import COUNTS as COUNTS

    # A GPU: memory, speed, links.
    from tuneloop.planning.catalogue.gpus import Gpu as Gpu

    # The table of GPUs.
    from tuneloop.planning.catalogue.gpus import all_gpus as all_gpus

    # The card that a driver calls so.
    from tuneloop.planning.catalogue.gpus import card_in_use as card_in_use

    # A GPU by any of its names.
    from tuneloop.planning.catalogue.gpus import find_gpu as find_gpu

    # The file of speeds that the self-test measured.
    from tuneloop.planning.catalogue.gpus import measured_file as measured_file

    # This machine's processor as a GPU.
    from tuneloop.planning.catalogue.gpus import this_cpu as this_cpu

    # How GPUs are rented.
    from tuneloop.planning.catalogue.prices import TIERS as TIERS

    # What a hosted model costs.
    from tuneloop.planning.catalogue.prices import HostedPrice as HostedPrice

    # An offer of a GPU by the hour.
    from tuneloop.planning.catalogue.prices import Price as Price

    # All offers, the user's own first.
    from tuneloop.planning.catalogue.prices import PriceTable as PriceTable

    # The prices that are known.
    from tuneloop.planning.catalogue.prices import load_prices as load_prices

    # Prices with one that is stated for a GPU.
    from tuneloop.planning.catalogue.prices import priced as priced

    # Fetch newer offers.
    from tuneloop.planning.catalogue.prices import update_prices as update_prices

    # A model's shape by its name, folder or config.
    from tuneloop.planning.catalogue.shape import find_model as find_model

__getattr__, __dir__ = door(__name__)
