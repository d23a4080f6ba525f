"""A process that compiles one JSON Schema from stdin and says what is wrong with it.

llguidance may take minutes and gigabytes for a schema of a few lines, and overflows its stack on others: here, with
limits of the system, that ends this process only.
"""

from __future__ import annotations

import contextlib
import json
import sys

LIMITS = {
    "RLIMIT_CPU": 1,  # second of a processor
    "RLIMIT_AS": 2 << 30,
    "RLIMIT_STACK": 4 << 20,  # half of what a thread of the server has: what passes here passes there
    "RLIMIT_CORE": 0,
}


def _limit() -> None:
    import resource

    for name, most in LIMITS.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    """Read a schema and llguidance's settings, and write an error, empty where there is none."""
    with contextlib.suppress(ModuleNotFoundError):  # Windows, where only the time is limited, by who has started this
        _limit()
    from llguidance import LLMatcher, LLTokenizer

    schema, defaults = json.load(sys.stdin)
    try:
        matcher = LLMatcher(
            LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(schema, defaults=defaults), log_level=0
        )
        why = matcher.get_error()
        if not why:
            matcher.compute_bitmask()
            why = matcher.get_error()
    except (ValueError, TypeError) as error:
        why = str(error)
    print(json.dumps(" ".join(why.split())[:400]))


if __name__ == "__main__":
    main()
