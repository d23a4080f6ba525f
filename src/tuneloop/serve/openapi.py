"""The OpenAPI document of a server."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_WHOLE = {"type": "integer"}
_YES = {"type": "boolean"}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"oneOf": [_TEXT, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]},
        },
    },
}
_SHARED: dict[str, Any] = {
    "model": _TEXT, "stream": _YES, "stream_options": {"type": "object"}, "n": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2}, "top_p": _NUMBER, "seed": _WHOLE, "user": _TEXT,
    "stop": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]}, "max_tokens": {"type": "integer", "minimum": 1},
    "service_tier": {"enum": ["auto", "default", "flex", "priority"]},
}  # fmt: skip
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_BODIES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "/v1/chat/completions": (
        "Answer a conversation",
        ["messages"],
        {
            **_SHARED, "messages": _MESSAGES, "max_completion_tokens": {"type": "integer", "minimum": 1},
            "tools": {"type": "array", "items": {"type": "object"}}, "tool_choice": {}, "logprobs": _YES,
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20}, "response_format": {"type": "object"},
        },
    ),
    "/v1/completions": (
        "Go on with a text",
        ["prompt"],
        {**_SHARED, "prompt": {}, "echo": _YES, "logprobs": {"type": "integer", "minimum": 0, "maximum": 20}},
    ),
    "/v1/responses": (
        "Answer a text or a conversation, without a memory of earlier ones",
        ["input"],
        {
            "model": _TEXT, "input": {}, "instructions": _TEXT, "stream": _YES, "temperature": _NUMBER,
            "top_p": _NUMBER, "max_output_tokens": {"type": "integer", "minimum": 1}, "text": {"type": "object"},
        },
    ),
    "/v1/classify": (
        "Choose a label, with its probability",
        [],
        {"model": _TEXT, "input": {}, "messages": _MESSAGES, "top": {"type": "integer", "minimum": 0}},
    ),
    "/v1/feedback": (
        "Say what came of an answer",
        ["kind", "value"],
        {"request": _TEXT, "conversation": _TEXT, "kind": _TEXT, "value": {}, "user": _TEXT, "key": _TEXT},
    ),
    "/tokenize": ("Token ids of a text or a conversation", [], {"model": _TEXT, "prompt": _TEXT, "messages": _MESSAGES}),
}  # fmt: skip
_GETS = {
    "/v1/models": "The models that answer",
    "/v1/models/{model}": "One of them",
    "/healthz": "Whether the process is alive",
    "/readyz": "Whether it takes requests",
    "/metrics": "Figures for Prometheus",
    "/openapi.json": "This document",
    "/feedback.js": "A script with which a page asks its readers for feedback",
}


def document() -> dict[str, Any]:
    """The document as JSON."""
    from tuneloop import __version__

    refused = {"description": "Refused", "content": {"application/json": {"schema": _ERROR}}}
    done = {"200": {"description": "Done"}, "4XX": refused, "5XX": refused}
    paths: dict[str, Any] = {}
    for path, (summary, required, properties) in _BODIES.items():
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        if required:
            schema["required"] = required
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": {"summary": summary, "requestBody": body, "responses": done}}
    for path, summary in _GETS.items():
        paths[path] = {"get": {"summary": summary, "responses": done}}
        if "{" in path:
            name = path.partition("{")[2].partition("}")[0]
            paths[path]["get"]["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _TEXT}]
    return {
        "openapi": "3.1.0",
        "info": {"title": "tuneloop", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }
