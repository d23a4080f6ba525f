"""How vLLM answers what goes wrong, and what it accepts: one list, for the real server and for its stand-in."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

NAME = "any"  # in the place of the base's name
# path, body, then status, and of an error its type and the parameter that it names
CASES: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    ("/v1/completions", {"model": "other", "prompt": [64]}, 404, "NotFoundError", "model"),
    ("/v1/chat/completions", {"model": "other", "messages": []}, 404, "NotFoundError", "model"),
    ("/v1/completions", {"model": NAME, "prompt": [64], "max_tokens": 1, "priority": -5}, 200, "", None),
    ("/v1/completions", {"model": NAME, "prompt": [64], "max_tokens": 1, "unknown_field": 1}, 200, "", None),
    ("/v1/completions", {"model": NAME, "prompt": [64], "max_tokens": "x"}, 400, "Bad Request", "body.max_tokens"),
    ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": ""}, 400, "InvalidUserInput", None),
    ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/nowhere/a"}, 404, "NotFoundError", None),
    ("/v1/unload_lora_adapter", {"lora_name": "a"}, 404, "NotFoundError", None),
]


def post(address: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON of a server's reply."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def differences(address: str, model: str) -> list[str]:
    """What a server does otherwise."""
    found = []
    for path, body, status, kind, param in CASES:
        named = {**body, "model": model} if body.get("model") == NAME else body
        code, reply = post(address, path, named)
        error = reply.get("error") if isinstance(reply, dict) else None
        if status == 200:
            fits = code == 200 and bool(reply["choices"])
        else:
            fits = (
                code == status
                and isinstance(error, dict)
                and error.keys() == {"message", "type", "param", "code"}
                and (error["type"], error["param"], error["code"]) == (kind, param, status)
                and bool(error["message"])
            )
        if not fits:
            found.append(f"{path} {body}: {code} {reply}")
    return found
