"""`tuneloop serve`, and the keys, the load and the costs of a server."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tuneloop.cli import mcp, ui
from tuneloop.cli.console import Result, minute, print_live, show, split_arguments
from tuneloop.cli.parameters import SERVER, argument, given, output, screen
from tuneloop.core.errors import UserError
from tuneloop.core.flag import flag, switch
from tuneloop.core.ids import since_time
from tuneloop.core.terminal import drawn
from tuneloop.core.ui import reporting, say
from tuneloop.core.units import counted
from tuneloop.serving import ApiKey, Limits, add_key, open_keys, read_keys, refuse_unpriced_budget, revoke_key

if TYPE_CHECKING:
    from tuneloop.serving import Gateway, ServeConfig

SAME = 0.99  # share of the answers that --check requires; roundings of another order flip near ties
FOLDER = flag("serve", "FOLDER", "Folder of the server.", "-f")


def command(
    arguments: list[str] | None = argument(
        "TARGET|serve.yaml|KEY=VALUE...",
        "Runs, artifacts, NAME@champion or a model; or a file of settings. Settings, as in port=8130.",
        None,
    ),
    check: bool = switch("Ask all test rows of each model, say how many are answered as evaluated, and end."),
) -> Result | None:
    """Answer requests by OpenAI's API until stopped.

    Several adapters on one base are served together, each as it was trained. SIGTERM lets running requests end.
    With --json one line with the address is printed when it is ready. --check: exit status 1 where a model answers less
    than 99 % of its test rows as in its evaluation, 3 where there is no evaluation.
    """
    from tuneloop.imports import trace_routes
    from tuneloop.improve import serve_until_stopped
    from tuneloop.serving import first_steps, serve_config
    from tuneloop.web import ui_routes

    targets, settings = split_arguments(arguments)
    config = serve_config(targets, settings)
    if check:
        return _check(config)
    as_lines, as_json, quiet = config.log.lines == "json", output().as_json, output().quiet
    with contextlib.ExitStack() as loading:
        loading.enter_context(drawn(quiet or as_lines, "loading the model"))

        def ready(address: str, gateway: Gateway) -> None:
            loading.close()  # nothing more happens that a reader waits for
            if as_json:
                record = {"address": address, "models": list(gateway.models), "folder": config.folder}
                show(Result(record), as_json=True)
            # Only a terminal is shown a key: what a file or a collector of logs gets must not hold one.
            shows_key = sys.stderr.isatty() and not (quiet or as_json)
            for line in () if as_lines else first_steps(address, gateway, with_key=shows_key):
                say(line)

        with reporting(say=partial(print_live, err=True)):
            serve_until_stopped(config, ready=ready, pages=lambda *of: [*trace_routes(of[1]), *ui_routes(*of)])
    return None


def _check(config: ServeConfig) -> Result:
    from tuneloop.serving import check_served

    with screen("asking the test rows"):
        models = check_served(config)
    lines = []
    for model in models:
        if not model.n:
            lines.append(f"{model.name}: there is no evaluation on test rows")
            continue
        rows = f"{model.same:,} of {counted(model.n, 'test row')} ({model.same / model.n:.1%})"
        lines.append(f"{model.name}: {rows} are answered as in the evaluation")
        if model.parted:
            differ = f"  {model.ties} of {counted(model.parted, 'other one')} that were looked at part where"
            gap = f"the largest gap is {model.largest_gap:.2g} nats"
            lines.append(f"{differ} the served model finds both tokens equally likely; {gap}")
        lines += [f"  {got[:100]!r} instead of {expected[:100]!r}" for expected, got in model.examples]
    record = {"models": [{**asdict(entry), "share": entry.same / entry.n if entry.n else None} for entry in models]}
    wrong = any(entry.same < SAME * entry.n and not entry.are_ties for entry in models)
    return Result(record, lines, 1 if wrong else 0 if all(entry.n for entry in models) else 3)


# --- keys --------------------------------------------------------------------------------------


def keys(
    action: str = argument("add|list|revoke|open", "What to do."),
    name: str = argument("[NAME]", "Who the key is for.", ""),
    folder: str = FOLDER,
    yes: bool = switch("With `open`: let requests without a key in again.", "-y"),
    *,
    limits: Limits,
) -> Result:
    """Make, list and revoke the API keys of a server.

    A key is shown once, when it is made; only a digest is kept. One that is revoked is refused at once. Once there was
    a key, a key is needed until `tuneloop keys open --yes`, also when the last one was revoked or keys.json is lost.
    """
    if action not in ("add", "list", "revoke", "open"):
        step = "tuneloop keys add NAME | list | revoke NAME | open --yes"
        raise UserError(f"No such action {action!r:.40}", next_step=step)
    if action == "list":
        rows = read_keys(folder)
        folder_option = "" if folder == "serve" else f" -f {folder}"
        hint = f"There is no key in {folder} yet: `tuneloop keys add NAME{folder_option}` makes one."
        return Result({"keys": [_public(key) for key in rows]}, map(_key_line, rows) if rows else [hint])
    if action == "open":
        if not yes:
            raise UserError("This lets everyone on this machine in without a key", next_step="tuneloop keys open --yes")
        open_keys(folder)
        line = "open: no key is needed on this machine's own address, until `tuneloop keys add`"
        return Result({"open": True}, [line])
    if not name:
        raise UserError("Whose key?", next_step=f"tuneloop keys {action} NAME")
    if action == "revoke":
        key = revoke_key(folder, name)
        return Result(_public(key), [f"revoked {key.name} ({key.id})"])
    try:
        limits = Limits.model_validate(given(limits))
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UserError(f"{option}: {first['msg'].lower()}", next_step="tuneloop keys --help") from None
    if limits.budget_usd is not None:
        refuse_unpriced_budget(folder, name)
    secret, key = add_key(folder, name, limits)
    return Result({"key": secret, **_public(key)}, [secret])


def _public(key: ApiKey) -> dict[str, Any]:
    """What is shown of a key; not its digest."""
    limits = key.limits.model_dump(exclude_defaults=True)
    return {"id": key.id, "name": key.name, "created": key.created, "revoked": key.revoked, "limits": limits}


def _key_line(key: ApiKey) -> str:
    def words(name: str, value: Any) -> str:
        text = ",".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
        return f"{name.replace('_', '-')} {text}"

    limits = ", ".join(words(*pair) for pair in key.limits.model_dump(exclude_defaults=True).items())
    state = f"revoked {minute(key.revoked)}" if key.revoked else limits or "no limits"
    return f"{key.id}  {key.name:<20} made {minute(key.created)}  {state}"


# --- load --------------------------------------------------------------------------------------


def top(
    folder: str = FOLDER,
    url: str = flag("", "URL", "Address of the server; default: the one in the folder."),
    every: float = flag(2.0, "S", "Seconds between two readings.", least=0.2),
    once: bool = switch("Print one reading and end."),
    api_key_env: str = flag("TUNELOOP_KEY", "NAME", "Environment variable with a key of the server."),
) -> Result | None:
    """Show what a running server does: requests, queue, times, tokens, batches, dollars.

    It reads the server's /metrics again and again until Ctrl-C; where the output is no terminal, it prints each
    reading. With --json or --once it prints what happened in the time between two readings.
    """
    from tuneloop.serving import readings_of_server

    readings = readings_of_server(url, Path(folder), os.environ.get(api_key_env, "").strip(), every)
    first = next(readings)
    if once or output().as_json:
        return Result(first, _top_lines(first))
    from rich.live import Live

    terminal = sys.stdout.isatty()
    with Live("\n".join(_top_lines(first)), auto_refresh=False) if terminal else contextlib.nullcontext() as live:
        for reading in readings:
            text = "\n".join(_top_lines(reading))
            if live is not None:
                live.update(text, refresh=True)
            else:
                print_live(text)
    return None


def _top_lines(of: dict[str, Any]) -> Iterator[str]:
    rates = f"{of['requests_per_second']:,.1f} requests/s   {of['tokens_per_second']:,.0f} tokens/s"
    yield f"{of['address']}   {rates}   engine {100 * of['engine_share']:.0f} %   {of['usd_per_hour']:,.2f} USD/h"
    yield (
        f"answering {of['active']:.0f}   waiting {of['waiting']:.0f}   refused {of['refused']:,.0f}   "
        f"on time {of['on_time']:,.0f}   late {of['late']:,.0f}   records lost {of['store_lost']:,.0f}   "
        f"yielding {of['in_background']:.0f}"
    )
    if of["predictions"]:
        error, coverage = 100 * of["prediction_error"], 100 * of["prediction_coverage"]
        yield (
            f"predicted {of['predictions']:,.0f} first tokens, {error:.0f} % off on average; "
            f"{coverage:.0f} % came within the bound by which requests are let in"
        )
    for tier, times in of["tiers"].items():
        p50, p99 = ("-" if times[name] is None else f"{times[name]:,.0f} ms" for name in ("ttft_p50_ms", "ttft_p99_ms"))
        yield f"  {tier:<20} first token p50 {p50}, p99 {p99}"
    for model, speed in of["models"].items():
        requests, tokens = speed["requests_per_second"], speed["tokens_per_second"]
        yield f"  {model:<20} {requests:,.1f} requests/s   {tokens:,.0f} tokens/s"
    for batch in of["batches"]:
        done = batch["completed"] + batch["failed"]
        yield f"  {batch['id'][:20]:<20} {batch['status']}: {done:,} of {batch['total']:,}"


# --- costs -------------------------------------------------------------------------------------


def costs(
    folder: str = flag("serve", "FOLDER", SERVER, "-f"),
    since: str = flag("", "TIME", "Only requests since then: 24h, 7d, 2026-01-31."),
    usd_per_hour: float | None = flag(None, "USD", "Price of a machine's hour; default: prices.usd_per_hour.", least=0),
    gpu: str = flag("", "GPU", "GPU of the planner's forecast; default: the server's own, else a common one."),
) -> Result:
    """Say what served requests cost, by model, key and tier.

    Tokens, engine seconds, utilisation, dollars for a million tokens and for a request, next to the prices of hosted
    models, with the volume from which this machine is cheaper.
    """
    from tuneloop.serving import costs_of

    summary = costs_of(folder, since_time(since), usd_per_hour, gpu)
    return Result(summary.to_json(), summary.lines())


commands = {"keys": keys, "top": top, "costs": costs, "mcp": mcp.command, "ui": ui.command}
