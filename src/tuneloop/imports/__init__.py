"""Traces of other tools become a store of requests and feedback."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The server's routes that take traces of OpenTelemetry.
    from tuneloop.imports.endpoint import trace_routes as trace_routes

    # The formats of traces that are read, by name.
    from tuneloop.imports.formats import FORMATS as FORMATS

    # What an import found, stored and left out.
    from tuneloop.imports.importing import ImportSummary as ImportSummary

    # A file or service with traces, and how it is read.
    from tuneloop.imports.importing import TraceSource as TraceSource

    # Traces read, mapped and stored; what is there already is not stored twice.
    from tuneloop.imports.importing import import_traces as import_traces

    # Why a trace is left out, each with its sentence.
    from tuneloop.imports.parts import REASONS as REASONS

__getattr__, __dir__ = door(__name__)
