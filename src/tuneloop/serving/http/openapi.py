"""The OpenAPI document of a server, from the models of its bodies."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from tuneloop.serving.http.contract import OPERATIONS, ErrorReply

_PLACE = "#/components/schemas/"


class _Terse(GenerateJsonSchema):
    """Schemas without titles of fields, which are their names, and without `null` as a default: it says nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """It should not."""
        return False

    def default_schema(self, schema: Any) -> dict[str, Any]:
        """A field with its default."""
        return self.generate_inner(schema["schema"]) if schema["default"] is None else super().default_schema(schema)


def document(*, batches: bool = True, most_choices: int | None = None) -> dict[str, Any]:
    """The document as JSON.

    Args:
        batches: whether the server takes batches.
        most_choices: answers to a request, at most; None: the document does not say it.
    """
    operations = [each for each in OPERATIONS if batches or not each.path.startswith(("/v1/files", "/v1/batches"))]
    models: list[type[BaseModel]] = [ErrorReply, *(each.body for each in operations if each.body is not None)]
    _, found = models_json_schema(
        [(model, "validation") for model in models], ref_template=_PLACE + "{model}", schema_generator=_Terse
    )
    schemas = found["$defs"]
    if most_choices is not None:
        for name in ("ChatBody", "CompletionsBody"):
            schemas[name]["properties"]["n"]["anyOf"][0]["maximum"] = most_choices
    refused = {"description": "Refused", "content": {"application/json": {"schema": {"$ref": f"{_PLACE}ErrorReply"}}}}
    paths: dict[str, Any] = {}
    for each in operations:
        operation: dict[str, Any] = {
            "summary": each.summary, "responses": {"200": {"description": "Done"}, "4XX": refused, "5XX": refused},
        }  # fmt: skip
        if each.body is not None:
            content = {each.media: {"schema": {"$ref": _PLACE + each.body.__name__}}}
            operation["requestBody"] = {"required": True, "content": content}
        if "{" in each.path:
            name = each.path.partition("{")[2].partition("}")[0]
            operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
        paths.setdefault(each.path, {})[each.method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "tuneloop", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }
