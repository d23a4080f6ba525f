"""Evaluation. The package is also what it does: `tuneloop.evaluate("runs/mine", limit=100)`."""

from tuneloop.core.callable_package import make_callable

make_callable(__name__, "tuneloop.api")
