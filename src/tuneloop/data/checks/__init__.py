"""Checks of a data set: what is worth knowing about it before money is spent on it."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The checks of a prepared data set.
    from tuneloop.data.checks.checks import check_dataset as check_dataset

    # How production records are read for a prepared data set.
    from tuneloop.data.checks.drift import as_prepared as as_prepared

    # Compare texts of production with those of training.
    from tuneloop.data.checks.drift import compare_with as compare_with

    # Production records as rows.
    from tuneloop.data.checks.drift import read_production as read_production

    # What a check says.
    from tuneloop.data.checks.overview import Finding as Finding

    # A data set as the checks see it.
    from tuneloop.data.checks.overview import Overview as Overview

    # Make a function from an overview to a finding a check.
    from tuneloop.data.checks.overview import check as check

    # Rows of a finding, the first of them to be shown.
    from tuneloop.data.checks.overview import examples_of as examples_of

__getattr__, __dir__ = door(__name__)
