"""The OpenAPI document of a server."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}
_YES = {"type": "boolean"}
_NAME = {"type": "string", "maxLength": 512}
_WORD = {"type": "string", "minLength": 1}
_SHARE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
_COUNT = {"type": "integer", "minimum": 1}
_FEW = {"type": "integer", "minimum": 0, "maximum": 20}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


_FUNCTION = _object(
    "type", "function", type={"const": "function"}, function=_object("name", name=_WORD, parameters={"type": "object"})
)
_PARTS = {"type": "array", "items": _object("type", "text", type={"const": "text"}, text=_TEXT)}
_ROLES = {"enum": ["system", "developer", "user", "assistant", "tool"]}
_MESSAGE = _object("role", "content", role=_ROLES, content={"oneOf": [_TEXT, _PARTS]})
_MESSAGES = {"type": "array", "minItems": 1, "items": _MESSAGE}
_TEXTS = {"oneOf": [_TEXT, {"type": "array", "minItems": 1, "maxItems": 16, "items": _TEXT}]}
_SHARED: dict[str, Any] = {
    "model": _TEXT, "stream": _YES, "stream_options": {"type": "object"}, "top_p": _SHARE, "seed": _WHOLE,
    "n": {"type": "integer", "minimum": 1, "maximum": 16}, "user": _NAME,
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "stop": {"oneOf": [_WORD, {"type": "array", "maxItems": 16, "items": _WORD}]}, "max_tokens": _COUNT,
    "service_tier": {"enum": ["auto", "default", "flex", "priority"]},
}  # fmt: skip
_WORD_OR_NULL = {"type": ["string", "null"]}
_ERROR = _object(
    "error", error=_object("message", "type", message=_TEXT, type=_TEXT, param=_WORD_OR_NULL, code=_WORD_OR_NULL)
)
_BODIES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "/v1/chat/completions": ("Answer a conversation", ["messages"], {
        **_SHARED, "messages": _MESSAGES, "max_completion_tokens": _COUNT,
        "tools": {"type": "array", "items": _FUNCTION}, "tool_choice": {"enum": ["none", "auto"]},
        "logprobs": _YES, "top_logprobs": _FEW,
        "response_format": _object("type", type={"enum": ["text", "json_object"]}),
    }),
    "/v1/completions": ("Continue a text", ["prompt"], {**_SHARED, "prompt": _TEXTS, "echo": _YES, "logprobs": _FEW}),
    "/v1/responses": ("Answer a text or a conversation, without a memory of earlier ones", ["input"], {
        "model": _TEXT, "input": {"oneOf": [_TEXT, _MESSAGES]}, "instructions": _TEXT, "stream": _YES,
        "temperature": _SHARED["temperature"], "top_p": _SHARE, "max_output_tokens": _COUNT, "text": {"type": "object"},
    }),
    "/v1/classify": ("Choose a label, with its probability", [], {
        "model": _TEXT, "input": _TEXTS, "messages": _MESSAGES, "user": _NAME, "top": {"type": "integer", "minimum": 0},
    }),
    "/v1/feedback": (
        "Say what came of an answer: by the id of a request, or with the key that had the conversation",
        ["kind", "value"],
        {"request": _TEXT, "conversation": _TEXT, "kind": _TEXT, "value": {}, "user": _TEXT, "key": _TEXT,
         "source": _TEXT, "weight": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000}},
    ),
    "/tokenize": (
        "Token ids of a text or a conversation", [], {"model": _TEXT, "prompt": _TEXT, "messages": _MESSAGES},
    ),
}  # fmt: skip
_GETS = {
    "/v1/models": "The models that answer",
    "/v1/models/{model}": "One of them",
    "/healthz": "Whether the process is alive",
    "/readyz": "Whether it takes requests",
    "/metrics": "Metrics for Prometheus",
    "/openapi.json": "This document",
    "/feedback.js": "A script with which a page asks its readers for feedback",
}
_FILE = _object("file", file={"type": "string", "format": "binary"}, purpose={"const": "batch"})
_BATCH_FIELDS = {
    "input_file_id": _TEXT, "endpoint": {"enum": ["/v1/chat/completions", "/v1/completions", "/v1/responses"]},
    "completion_window": {"type": "string", "pattern": "^[1-9][0-9]{0,3}[hd]$"}, "metadata": {"type": "object"},
}  # fmt: skip
_BATCH = _object("input_file_id", "endpoint", "completion_window", **_BATCH_FIELDS)
# Path, method -> what it does, the kind of its body and its schema; of batches and their files.
_BATCHES: dict[tuple[str, str], tuple[str, str, dict[str, Any]]] = {
    ("/v1/files", "post"): ("Upload a file of requests", "multipart/form-data", _FILE),
    ("/v1/files", "get"): ("The files", "", {}),
    ("/v1/files/{id}", "get"): ("One of them", "", {}),
    ("/v1/files/{id}", "delete"): ("Delete it", "", {}),
    ("/v1/files/{id}/content", "get"): ("What it holds", "", {}),
    ("/v1/batches", "post"): ("Answer a file of requests", "application/json", _BATCH),
    ("/v1/batches", "get"): ("The batches", "", {}),
    ("/v1/batches/{id}", "get"): ("One of them", "", {}),
    ("/v1/batches/{id}/cancel", "post"): ("End it early", "", {}),
}


def document(*, batches: bool = True) -> dict[str, Any]:
    """The document as JSON; `batches`: whether the server takes batches."""
    refused = {"description": "Refused", "content": {"application/json": {"schema": _ERROR}}}
    responses = {"200": {"description": "Done"}, "4XX": refused, "5XX": refused}
    paths: dict[str, Any] = {}
    operations: dict[tuple[str, str], tuple[str, str, dict[str, Any]]] = {}
    for path, (summary, required, properties) in _BODIES.items():
        schema = {"type": "object", "properties": properties} | ({"required": required} if required else {})
        operations[path, "post"] = summary, "application/json", schema
    operations |= {(path, "get"): (summary, "", {}) for path, summary in _GETS.items()}
    for (path, method), (summary, kind, schema) in (operations | (_BATCHES if batches else {})).items():
        operation: dict[str, Any] = {"summary": summary, "responses": responses}
        if kind:
            operation["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
        if "{" in path:
            name = path.partition("{")[2].partition("}")[0]
            operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _TEXT}]
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "tuneloop", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }
