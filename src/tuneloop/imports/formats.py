"""The formats that `tuneloop import` reads, by their names."""

from __future__ import annotations

from tuneloop.imports import helicone, jsonl, langfuse, litellm, mlflow, openai, otel, tensorzero

FORMATS = {
    source_format.FORMAT.name: source_format.FORMAT
    for source_format in (langfuse, otel, tensorzero, litellm, openai, mlflow, helicone, jsonl)
}
