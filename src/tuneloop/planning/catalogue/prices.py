"""What GPUs, hosted models and storage cost: a dated table, newer offers when fetched, the user's own prices on top.

Nothing is converted: all prices are US dollars without tax. The user's price for a GPU and tier wins over fetched ones,
these over the bundled ones; among prices of one level the smallest bill wins.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date as Day
from pathlib import Path
from typing import Any, Literal

import yaml

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import home, write_yaml
from tuneloop.core.foreign import file_bytes, packaged_yaml, parse_yaml
from tuneloop.planning.catalogue.gpus import CPU, Gpu, all_gpus, find_gpu

Tier = Literal["on-demand", "spot", "community", "reserved"]
TIERS: tuple[Tier, ...] = ("on-demand", "spot", "community", "reserved")
# What is taken in place of a tier, or compared with it: on demand where spot has no cheaper offer, a private host's
# machine where no data centre rents the card out on demand.
INSTEAD: dict[str, Tier] = {"spot": "on-demand", "on-demand": "community"}
BUNDLED = Path(__file__).with_name("prices.yaml")
OLD_AFTER_DAYS = 180
EXAMPLE = "as in: offers: [{provider: us, date: 2026-11-24, usd_per_gpu_hour: {h100-sxm: 2.10}}]"
CPU_USD_PER_HOUR = 0.05  # of this machine without a GPU, unless it is given: about two shared cloud cores


@dataclass(frozen=True)
class Price:
    """An offer: what one GPU costs for an hour."""

    provider: str  # who rents it out
    gpu: str  # key, as in `gpus.yaml`
    gpus: int  # fewest GPUs that are rented together at this price
    tier: Tier  # `on-demand`, `spot` (may be taken away), `community` (private hosts) or `reserved`
    usd_per_hour: float  # for one GPU
    date: str  # day the price was read, ISO 8601
    source: str  # where it stands

    def machines_usd(self, gpus: int) -> float:
        """Dollars an hour for at least `gpus` GPUs: machines are rented whole."""
        return math.ceil(gpus / self.gpus) * self.gpus * self.usd_per_hour

    def age_days(self, today: Day | None = None) -> int:
        """Days since the price was read."""
        return ((today or Day.today()) - Day.fromisoformat(self.date)).days

    def words(self, today: Day | None = None) -> str:
        """The price as an assumption: `$1.19 an hour and GPU, on-demand (RunPod Community, 2026-11-09)`. This machine's
        processor is not rented by the GPU: `$0.05 an hour (this machine, assumed)`."""
        if self.gpu == CPU:
            return f"${self.usd_per_hour:g} an hour ({self.provider})"
        old = "; old: `tuneloop plan prices update`" if self.age_days(today) > OLD_AFTER_DAYS else ""
        whole = f", rented {self.gpus} at a time" if self.gpus > 1 else ""
        return f"${self.usd_per_hour:g} an hour and GPU, {self.tier}{whole} ({self.provider}, {self.date}{old})"


@dataclass(frozen=True)
class HostedPrice:
    """What a hosted model costs: dollars for 1 million tokens read and written."""

    provider: str
    model: str
    input: float
    output: float
    date: str
    source: str


@dataclass(frozen=True)
class StoragePrice:
    """What keeping files costs: dollars for a GB and month."""

    provider: str
    usd_per_gb_month: float
    date: str
    source: str


@dataclass(frozen=True)
class PriceTable:
    """All prices: `levels` of GPU offers, the first that knows a GPU and tier decides."""

    levels: tuple[tuple[Price, ...], ...]
    tokens: tuple[HostedPrice, ...]
    tuning: tuple[HostedPrice, ...]  # `input`: of 1 million tokens that a service trains on, those of all epochs
    storage: StoragePrice

    def offers(self, gpu: str, tier: str = "on-demand") -> list[Price]:
        """Offers of the first level that has any for this GPU and tier, the cheapest first."""
        for level in self.levels:
            if offers := [price for price in level if price.gpu == gpu and price.tier == tier]:
                return sorted(offers, key=lambda price: (price.usd_per_hour, price.gpus, price.provider))
        return []

    def of(self, providers: Sequence[str]) -> PriceTable:
        """The table with the bundled offers of these providers alone; prices that a user gave or fetched stay."""
        bundled = tuple(price for price in self.levels[-1] if price.provider in providers)
        return replace(self, levels=(*self.levels[:-1], bundled))

    def with_price(self, provider: str, gpu: str, usd_per_hour: float, tier: Tier) -> PriceTable:
        """The table with a price on top of all others."""
        mine = Price(provider, gpu, 1, tier, usd_per_hour, Day.today().isoformat(), provider)
        return replace(self, levels=((mine,), *self.levels))

    def gpu(self, gpu: str, tier: str = "on-demand", gpus: int = 1) -> Price | None:
        """The offer with the smallest bill for `gpus` GPUs, or None where there is no price.

        A spot machine that costs more than one on demand is not taken (its fewest GPUs may be more than are needed):
        then the price on demand is given, and says so. Where a card is not rented out on demand, a private host's price
        is.
        Raises UserError: an unknown tier.
        """
        if tier not in TIERS:
            raise UserError(f"No price tier {tier!r}", where="tier", next_step=f"choose one of {', '.join(TIERS)}")
        offers = self.offers(gpu, tier)
        if (offers and tier == "spot") or (not offers and tier == "on-demand"):
            offers = offers + self.offers(gpu, INSTEAD[tier])
        return min(offers, key=lambda price: (price.machines_usd(gpus), price.tier != tier), default=None)

    def hosted(self, model: str) -> list[HostedPrice]:
        """Hosted prices of a model by its short name (`-instruct` or not), the cheapest first."""
        name = model.rsplit("/", 1)[-1].lower().removeprefix("meta-").removesuffix("-instruct")
        prices = [price for price in self.tokens if price.model == name]
        return sorted(prices, key=lambda price: price.input + price.output)

    def trained(self, model: str) -> HostedPrice | None:
        """The cheapest service that fine-tunes a model, by its name there; None: no price is known."""
        return min(
            (tuning for tuning in self.tuning if tuning.model == model), key=lambda tuning: tuning.input, default=None
        )


def load_prices(file: Path | str | None = None) -> PriceTable:
    """All prices: bundled, fetched, and the user's own on top. `file`: the user's; default:
    `~/.config/tuneloop/prices.yaml`, where there is one. Raises UserError: a file is missing, damaged or has gaps."""
    mine = Path(file) if file else own_file()
    if file and not mine.is_file():
        raise UserError("No such price file", where=str(file), next_step="check the path")
    files = [path for path in (mine, fetched_file()) if path.is_file()]
    return _load(tuple((str(path), path.stat().st_mtime_ns) for path in files))


def config_folder() -> Path:
    """Where a user's settings live: `$XDG_CONFIG_HOME/tuneloop` or `~/.config/tuneloop`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or home() / ".config") / "tuneloop"


def own_file() -> Path:
    """The user's own prices."""
    return config_folder() / "prices.yaml"


def fetched_file() -> Path:
    """Prices that `tuneloop plan prices update` has fetched."""
    return config_folder() / "prices-fetched.yaml"


@functools.cache
def _load(files: tuple[tuple[str, int], ...]) -> PriceTable:
    bundled = packaged_yaml(BUNDLED)
    gpus = {*all_gpus(), *(gpu for group in bundled["offers"] for gpu in group["usd_per_gpu_hour"])}
    levels = [tuple(_own_offers(Path(path), gpus)) for path, _ in files]
    return PriceTable(
        levels=(*levels, tuple(_offers(bundled["offers"]))),
        tokens=tuple(HostedPrice(**_dated(entry)) for entry in bundled["tokens"]),
        tuning=tuple(HostedPrice(output=0.0, **_dated(entry)) for entry in bundled["tuning"]),
        storage=StoragePrice(**_dated(bundled["storage"])),
    )


def _dated(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "date": str(entry["date"])}


def _offers(groups: Iterable[Mapping[str, Any]]) -> Iterable[Price]:
    for group in groups:
        gpus, tier, date = group.get("machine", 1), group.get("tier", "on-demand"), str(group["date"])
        for gpu, usd in group["usd_per_gpu_hour"].items():
            yield Price(group["provider"], gpu, gpus, tier, float(usd), date, group["source"])


def _own_offers(path: Path, gpus: set[str]) -> Iterable[Price]:
    """The offers of a file that people write, checked entry by entry."""
    values = _read(path)
    _refuse_unknown(values, {"version", "currency", "offers"}, str(path))
    if values.get("currency", "USD") != "USD":
        message = f"Prices in {values['currency']!r}: nothing is converted, all prices are US dollars"
        raise UserError(message, where=f"{path}: currency", next_step="write the prices in US dollars")
    groups = values.get("offers")
    if not isinstance(groups, list) or not groups:
        raise UserError("The price file has no offers", where=str(path), next_step=EXAMPLE)
    return [price for i, group in enumerate(groups, 1) for price in _own_group(group, f"{path}: offer {i}", gpus)]


def _own_group(group: Any, where: str, gpus: set[str]) -> list[Price]:
    if not isinstance(group, dict):
        raise UserError("An offer is a mapping", where=where, next_step=EXAMPLE)
    _refuse_unknown(group, {"provider", "tier", "date", "source", "machine", "usd_per_gpu_hour"}, where)
    tier, machine, prices = group.get("tier", "on-demand"), group.get("machine", 1), group.get("usd_per_gpu_hour")
    is_date = False
    with contextlib.suppress(ValueError):
        is_date = bool(Day.fromisoformat(str(group.get("date"))))
    checks = (
        *((group.get(key), f"The offer has no {key!r}", EXAMPLE) for key in ("provider", "date", "usd_per_gpu_hour")),
        (tier in TIERS, f"No price tier {tier!r}", f"choose one of {', '.join(TIERS)}"),
        (type(machine) is int and 1 <= machine <= 1024, f"machine is a count of GPUs, not {machine!r}",
         "leave it out, or write 8"),
        (is_date, f"Not a date: {group.get('date')!r}", "write it as 2026-11-24"),
        (isinstance(prices, dict), "usd_per_gpu_hour maps GPUs to prices", EXAMPLE),
    )  # fmt: skip
    for right, message, step in checks:
        if not right:
            raise UserError(message, where=where, next_step=step)
    assert isinstance(prices, dict)
    for gpu, usd in prices.items():
        if gpu not in gpus:
            raise UserError(f"Unknown GPU {gpu!r}", where=where, next_step=_nearest(str(gpu), gpus))
        if isinstance(usd, bool) or not isinstance(usd, int | float) or not 0 < usd < 10_000:
            step = "write dollars an hour for one GPU, as in 2.69"
            raise UserError(f"Not a price for {gpu}: {usd!r}", where=where, next_step=step)
    return list(_offers([{"source": where, **group}]))


def _read(path: Path) -> dict[str, Any]:
    try:
        value = parse_yaml(file_bytes(path, "yaml"))
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError("The price file is not valid YAML", where=where, next_step=EXAMPLE) from None
    except OSError as error:
        raise UserError(f"Can't read the price file: {error.strerror}", where=str(path), next_step="check it") from None
    if not isinstance(value, dict):
        raise UserError("A price file is a mapping with `offers`", where=str(path), next_step=EXAMPLE)
    return value


def _refuse_unknown(values: Mapping[str, Any], allowed: set[str], where: str) -> None:
    for key in values:
        if key not in allowed:
            raise UserError(f"Unknown key {key!r}", where=where, next_step=_nearest(str(key), allowed))


def _nearest(name: str, names: set[str]) -> str:
    return did_you_mean(name, sorted(names), f"choose one of {', '.join(sorted(names))}", most=3)


# Our keys by the catalogue's names and GB of memory, which tells cards of one name apart.
CATALOGUE_NAMES: dict[tuple[str, int], str] = {
    ("T4", 16): "t4", ("L4", 24): "l4", ("A10G", 24): "a10g", ("A10", 24): "a10", ("A5000", 24): "a5000",
    ("RTXA5000", 24): "a5000", ("RTX6000Ada", 48): "rtx6000-ada", ("RTX3060", 12): "rtx3060",
    ("RTX3080", 12): "rtx3080-12gb", ("RTX4070", 12): "rtx4070", ("RTX4070Ti", 12): "rtx4070-ti",
    ("RTX4080", 16): "rtx4080", ("RTX5070", 12): "rtx5070", ("RTX5080", 16): "rtx5080", ("V100", 16): "v100-16gb",
    ("V100", 32): "v100-32gb", ("RTX3090", 24): "rtx3090", ("RTX4090", 24): "rtx4090", ("RTX5090", 32): "rtx5090",
    ("A6000", 48): "a6000", ("RTXA6000", 48): "a6000", ("L40S", 48): "l40s", ("A100", 40): "a100-40gb",
    ("A100", 80): "a100-80gb", ("H200", 141): "h200", ("B200", 180): "b200", ("B200", 192): "b200",
    ("MI300X", 192): "mi300x",
}  # fmt: skip


def catalogue_key(name: str, memory_gb: float, instance: str) -> str | None:
    """Our key for a GPU of the catalogue; an 80 GB H100 is PCIe only where its instance says so."""
    if name in ("H100", "H100NVL") and round(memory_gb) == 80:
        return "h100-pcie" if "pcie" in instance.lower() else "h100-sxm"
    return CATALOGUE_NAMES.get((name, round(memory_gb)))


def update_prices(today: Day | None = None) -> dict[str, Any]:
    """Fetch the offers of major clouds through gpuhunt's catalogue and keep them in `fetched_file()`.

    Returns:
        `path`, `offers` (how many), `gpus`, `providers`.
    Raises UserError: gpuhunt is not installed, or its catalogue can't be reached.
    """
    logging.getLogger("gpuhunt").setLevel(logging.CRITICAL + 1)  # else a traceback for each provider without a network
    try:
        import gpuhunt
    except ImportError:
        message = "Fetching prices needs the package gpuhunt, which is not installed"
        step = "pip install 'tuneloop[prices]'; without it the bundled prices are used"
        raise UserError(message, where="plan prices update", next_step=step) from None
    try:
        items = gpuhunt.query(min_gpu_count=1)
    except Exception as error:  # the catalogue's library raises what its many providers raise
        items, reason = [], str(error).splitlines()[0] if str(error) else type(error).__name__
    else:
        reason = "no provider answered"
    groups = group_offers(items, str(today or Day.today()))
    if not groups:
        step = "try again with a network; until then the bundled and your own prices are used"
        raise UserError(f"The price catalogue can't be reached: {reason}", where="plan prices update", next_step=step)
    write_yaml(fetched_file(), {"version": 1, "currency": "USD", "offers": groups})
    return {
        "path": str(fetched_file()),
        "offers": sum(len(group["usd_per_gpu_hour"]) for group in groups),
        "gpus": sorted({gpu for group in groups for gpu in group["usd_per_gpu_hour"]}),
        "providers": sorted({group["provider"] for group in groups}),
    }


def group_offers(items: Iterable[Any], day: str) -> list[dict[str, Any]]:
    """The catalogue's items as groups of a price file: the cheapest of each provider, tier, machine size and GPU."""
    best: dict[tuple[str, str, int], dict[str, float]] = {}
    for item in items:
        complete = item.gpu_count and item.gpu_name and item.gpu_memory and item.price > 0
        key = catalogue_key(item.gpu_name, item.gpu_memory, item.instance_name or "") if complete else None
        if key is None:
            continue
        prices = best.setdefault((item.provider, "spot" if item.spot else "on-demand", item.gpu_count), {})
        prices[key] = min(prices.get(key, math.inf), round(item.price / item.gpu_count, 5))
    read = {"date": day, "source": "https://github.com/dstackai/gpuhunt"}
    return [
        {"provider": provider, "tier": tier, **read, "machine": machine, "usd_per_gpu_hour": dict(sorted(usd.items()))}
        for (provider, tier, machine), usd in sorted(best.items())
    ]


def priced(prices: PriceTable, gpu: str | Gpu | None, usd_per_gpu_hour: float | None, tier: Tier) -> PriceTable:
    """The prices, on top one given for a GPU, and the processor's. Raises UserError: a price that can't be, or of no
    GPU."""
    here = prices.with_price("this machine, assumed", CPU, CPU_USD_PER_HOUR, tier)
    if usd_per_gpu_hour is None:
        return here
    if not gpu or not 0 <= usd_per_gpu_hour <= 10_000:
        message = f"${usd_per_gpu_hour:g} an hour is the price of no GPU"
        step = "give dollars an hour from 0 to 10,000, and name the GPU with --gpu"
        raise UserError(message, where="--usd-per-gpu-hour", next_step=step)
    return here.with_price("given", find_gpu(gpu).key, usd_per_gpu_hour, tier)
