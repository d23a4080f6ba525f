"""The error that a user sees, and what it proposes."""

from pathlib import Path

import pytest

from tuneloop.core.errors import UserError, did_you_mean


def test_an_error_is_printed_as_what_where_and_what_next():
    error = UserError("No such run", where="runs/a", next_step="check the path")
    assert str(error) == "No such run\n  where: runs/a\n  next:  check the path"
    assert str(UserError("No such run")) == "No such run"


@pytest.mark.parametrize(
    ("name", "known", "most", "told"),
    [
        ("adaptre", ["merged", "adapter"], 1, "did you mean adapter?"),
        ("h100", ["h100-sxm", "h100-pcie", "t4"], 3, "did you mean h100-sxm or h100-pcie?"),
        ("banana", ["merged", "adapter"], 1, "choose one"),
    ],
)
def test_the_known_name_that_is_most_like_the_given_one_is_proposed(name, known, most, told):
    assert did_you_mean(name, known, "choose one", most=most) == told


def test_what_is_written_for_a_known_name_can_be_its_path():
    assert did_you_mean("runs1", ["run1", "data"], shown=Path("folder").joinpath) == "did you mean folder/run1?"
