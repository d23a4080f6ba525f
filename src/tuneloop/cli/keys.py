"""`tuneloop serve keys`."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import Output, argument, given
from tuneloop.core.errors import UserError
from tuneloop.core.flag import flag, switch
from tuneloop.serving.keys import (
    ApiKey,
    Limits,
    add_key,
    last_prices,
    open_keys,
    read_keys,
    refuse_budget_without_prices,
    revoke_key,
)


def command(
    action: str = argument("add|list|revoke|open", "What to do."),
    name: str = argument("[NAME]", "Who the key is for.", ""),
    folder: str = flag("serve", "FOLDER", "Folder of the server.", "-f"),
    yes: bool = switch("With `open`: let requests without a key in again.", "-y"),
    *,
    limits: Limits,
    output: Output,
) -> Result:
    """Make, list and revoke the API keys of a server.

    A key is shown once, when it is made; only a digest is kept. One that is revoked is refused at once. Once there was a key,
    a key is needed until `tuneloop keys open --yes`, also where the last one was revoked or keys.json is gone.
    """
    if action not in ("add", "list", "revoke", "open"):
        raise UserError(
            f"No such action {action!r:.40}", next_step="tuneloop keys add NAME | list | revoke NAME | open --yes"
        )
    if action == "list":
        keys = read_keys(folder)
        return Result({"keys": [_shown(key) for key in keys]}, map(_line, keys))
    if action == "open":
        if not yes:
            raise UserError("This lets everyone on this machine in without a key", next_step="tuneloop keys open --yes")
        open_keys(folder)
        line = "open: no key is needed on this machine's own address, until `tuneloop keys add`"
        return Result({"open": True}, [line])
    if not name:
        raise UserError("Whose key?", next_step=f"tuneloop keys {action} NAME")
    if action == "revoke":
        gone = revoke_key(folder, name)
        return Result(_shown(gone), [f"revoked {gone.name} ({gone.id})"])
    allowed = _checked(limits)
    if allowed.budget_usd is not None:
        refuse_budget_without_prices([name], last_prices(folder), folder)
    secret, made = add_key(folder, name, allowed)
    return Result({"key": secret, **_shown(made)}, [secret])


def _checked(limits: Limits) -> Limits:
    try:
        return Limits.model_validate(given(limits))
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UserError(f"{option}: {first['msg'].lower()}", next_step="tuneloop keys --help") from None


def _shown(key: ApiKey) -> dict[str, Any]:
    """What is shown of a key; not its digest."""
    return {
        "id": key.id, "name": key.name, "created": key.created, "revoked": key.revoked,
        "limits": key.limits.model_dump(exclude_defaults=True),
    }  # fmt: skip


def _line(key: ApiKey) -> str:
    limits = ", ".join(_limit(*each) for each in key.limits.model_dump(exclude_defaults=True).items())
    state = f"revoked {key.revoked[:16].replace('T', ' ')}" if key.revoked else limits or "no limits"
    return f"{key.id}  {key.name:<20} made {key.created[:16].replace('T', ' ')}  {state}"


def _limit(name: str, value: Any) -> str:
    """A limit as its option names it."""
    shown = ",".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
    return f"{name.replace('_', '-')} {shown}"
