"""`tuneloop keys`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuneloop.cli.console import print_json
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.errors import UserError
from tuneloop.core.flag import flag, switch

if TYPE_CHECKING:
    from tuneloop.serving.api_key import ApiKey


@dataclass(frozen=True)
class LimitOptions:
    """What a key may use."""

    adapters: str = flag("", "NAMES", "Models that it may ask, separated by commas; default: all.")
    rpm: int | None = flag(None, "N", "Requests a minute.", least=1)
    tpm: int | None = flag(None, "N", "Tokens a minute, read and written.", least=1)
    budget_usd: float | None = flag(None, "USD", "Dollars in all; needs prices in serve.yaml.", least=0)
    priority: str = flag("normal", "NAME", "high, normal or low: before whom its requests are answered.")
    deadline_ms: float | None = flag(None, "MS", "Milliseconds to the first token; default: the server's objective.")
    late: str = flag("refuse", "refuse|flex", "What becomes of a request that would be late: 429, or the tier flex.")
    train: str = flag("yes", "yes|no", "Whether its requests may become training data.")
    keep_days: float | None = flag(None, "DAYS", "Days after which texts leave the store; default: log.keep_days.")
    rights: str = flag(
        "", "NAMES", "users: the users that it names are believed; feedback: on any request, with weight."
    )


def command(
    action: str = argument("add|list|revoke|open", "What to do."),
    name: str = argument("[NAME]", "Who the key is for.", ""),
    folder: str = flag("serve", "FOLDER", "Folder of the server.", "-f"),
    yes: bool = switch("With `open`: let requests without a key in again.", "-y"),
    *,
    limits: LimitOptions,
    output: Output,
) -> None:
    """Make, list and revoke the API keys of a server.

    A key is shown once, when it is made; only a digest is kept. One that is revoked is refused at once. Once there was a key,
    a key is needed until `tuneloop keys open --yes`, also where the last one was revoked or keys.json is gone.
    """
    from tuneloop.serving.keys import (
        add_key,
        last_prices,
        open_keys,
        read_keys,
        refuse_budget_without_prices,
        revoke_key,
    )

    if action not in ("add", "list", "revoke", "open"):
        raise UserError(
            f"No such action {action!r:.40}", next_step="tuneloop keys add NAME | list | revoke NAME | open --yes"
        )
    if action == "list":
        keys = read_keys(folder)
        if output.json:
            print_json({"keys": [_shown(key) for key in keys]})
        for line in [] if output.json else map(_line, keys):
            print(line)
        return
    if action == "open":
        if not yes:
            raise UserError("This lets everyone on this machine in without a key", next_step="tuneloop keys open --yes")
        open_keys(folder)
        print_json({"open": True}) if output.json else print(
            "open: no key is needed on this machine's own address, until `tuneloop keys add`"
        )
        return
    if not name:
        raise UserError("Whose key?", next_step=f"tuneloop keys {action} NAME")
    if action == "revoke":
        gone = revoke_key(folder, name)
        print_json(_shown(gone)) if output.json else print(f"revoked {gone.name} ({gone.id})")
        return
    allowed = _limits(limits)
    if allowed.budget_usd is not None:
        refuse_budget_without_prices([name], last_prices(folder), folder)
    secret, made = add_key(folder, name, allowed)
    if output.json:
        print_json({"key": secret, **_shown(made)})
    else:
        print(secret)


def _limits(options: LimitOptions) -> Any:
    from pydantic import ValidationError

    from tuneloop.serving.api_key import Limits

    lists = {
        name: [each.strip() for each in getattr(options, name).split(",") if each.strip()]
        for name in ("adapters", "rights")
    }
    try:
        return Limits.model_validate(vars(options) | lists)
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
