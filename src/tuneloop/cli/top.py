"""`tuneloop serve top`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneloop.cli.console import Result, print_live
from tuneloop.cli.parameters import Output
from tuneloop.core.flag import flag, switch
from tuneloop.core.urls import masked


def command(
    folder: str = flag("serve", "FOLDER", "Folder of the server.", "-f"),
    url: str = flag("", "URL", "Address of the server; default: the one in the folder."),
    every: float = flag(2.0, "S", "Seconds between two readings.", least=0.2),
    once: bool = switch("Print one reading and end."),
    api_key_env: str = flag("TUNELOOP_KEY", "NAME", "Environment variable with a key of the server."),
    *,
    output: Output,
) -> Result | None:
    """Show what a running server does: requests, queue, times, tokens, batches, dollars.

    It reads the server's /metrics again and again until Ctrl-C; where the output is no terminal, it prints each reading. With --json or --once it prints what went on in the time
    between two readings.
    """
    from tuneloop.serving.top import address_of, batch_progress, read_metrics, view

    address, key = url or address_of(Path(folder)), os.environ.get(api_key_env, "").strip()
    before = read_metrics(address, time.monotonic(), key)
    time.sleep(every)
    after = read_metrics(address, time.monotonic(), key)
    shown = {
        "address": masked(address),
        **view(before, after, after.at - before.at),
        "batches": list(batch_progress(Path(folder))),
    }
    if once or output.as_json:
        return Result(shown, _lines(shown))
    _live(shown, address, key, every, Path(folder))
    return None


def _live(shown: dict[str, Any], address: str, key: str, every: float, folder: Path) -> None:
    from rich.live import Live

    from tuneloop.serving.top import batch_progress, read_metrics, view

    before = read_metrics(address, time.monotonic(), key)
    terminal = sys.stdout.isatty()
    with Live("\n".join(_lines(shown)), auto_refresh=False) if terminal else contextlib.nullcontext() as screen:
        while True:
            time.sleep(every)
            after = read_metrics(address, time.monotonic(), key)
            found = {
                "address": masked(address),
                **view(before, after, after.at - before.at),
                "batches": list(batch_progress(folder)),
            }
            if screen is not None:
                screen.update("\n".join(_lines(found)), refresh=True)
            else:
                print_live("\n".join(_lines(found)))
            before = after


def _lines(shown: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{shown['address']}   {shown['requests_per_second']:,.1f} requests/s   {shown['tokens_per_second']:,.0f} tokens/s   "
        f"engine {100 * shown['engine_share']:.0f} %   {shown['usd_per_hour']:,.2f} USD/h"
    )
    yield (
        f"answering {shown['active']:.0f}   waiting {shown['waiting']:.0f}   refused {shown['refused']:,.0f}   "
        f"on time {shown['on_time']:,.0f}   late {shown['late']:,.0f}   records lost {shown['store_lost']:,.0f}   "
        f"giving way {shown['giving_way']:.0f}"
    )
    if shown["predictions"]:
        yield (
            f"predicted {shown['predictions']:,.0f} first tokens, {100 * shown['prediction_error']:.0f} % off on average; "
            f"{100 * shown['prediction_coverage']:.0f} % came within the bound by which requests are let in"
        )
    for tier, times in shown["tiers"].items():
        p50, p99 = ("-" if times[name] is None else f"{times[name]:,.0f} ms" for name in ("ttft_p50_ms", "ttft_p99_ms"))
        yield f"  {tier:<20} first token p50 {p50}, p99 {p99}"
    for model, rates in shown["models"].items():
        yield f"  {model:<20} {rates['requests_per_second']:,.1f} requests/s   {rates['tokens_per_second']:,.0f} tokens/s"
    for each in shown["batches"]:
        yield f"  {each['id'][:20]:<20} {each['status']}: {each['completed'] + each['failed']:,} of {each['total']:,}"
