"""Whether a candidate may replace what is in use: suites of demands, margins, the line for CI."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Whether a comparison passes, in a line for CI.
    from tuneloop.evaluation.gate.ci import not_worse as not_worse

    # Judge a candidate by a suite or a margin, and store the result.
    from tuneloop.evaluation.gate.decide import apply_suite as apply_suite

    # What the gate said of a run, to be recorded with what is made of it; refused where it is red.
    from tuneloop.evaluation.gate.decide import gate_for_release as gate_for_release

    # A row that must pass.
    from tuneloop.evaluation.gate.suite import MustPass as MustPass

    # Read and check a suite.
    from tuneloop.evaluation.gate.suite import load_suite as load_suite

    # A commented suite from an evaluation or a data set.
    from tuneloop.evaluation.gate.suite import write_first_suite as write_first_suite

__getattr__, __dir__ = door(__name__)
