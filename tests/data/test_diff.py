from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared import Splits, row, tickets, write_dataset

from tuneloop.core.errors import UserError
from tuneloop.data.diff import chi_square, diff_datasets


def test_a_data_set_does_not_differ_from_itself(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", {"train": tickets(8), "test": tickets(2, 8)})
    diff = diff_datasets(folder, folder / "dataset.json")
    assert diff.identical and diff.same == 10 and not diff.config and not diff.sources
    assert diff.labels_p in (None, 1.0)


def test_every_kind_of_change_is_told_apart(tmp_path: Path) -> None:
    kept, moved, removed = tickets(6), row("I was measured"), row("I go")
    relabelled, told = row("Same question", "late"), row("Told otherwise")
    a = write_dataset(tmp_path / "a", {"train": [*kept, removed, relabelled, told], "test": [moved]})
    added = row("I am new", "praise")
    again = [row("SAME  question", "lost"), row("Told otherwise", system="Another instruction.")]
    b = write_dataset(tmp_path / "b", {"train": [*kept, moved, *again], "val": [added]})
    diff = diff_datasets(a, b)
    assert (diff.same, diff.added, diff.removed) == (6, {"val": 1}, {"train": 1})
    assert diff.changed == {"label": 1, "instruction": 1}
    assert diff.moved == {"test -> train": 1}
    assert diff.examples["added"][0]["prompt"] == "I am new"
    assert diff.examples["removed"][0]["prompt"] == "I go"
    changed = {example["kind"]: example for example in diff.examples["changed"]}
    assert (changed["label"]["was"]["answer"], changed["label"]["answer"]) == ("late", "lost")
    assert diff.examples["moved"][0] | {"split": "train", "was": {"split": "test"}} == diff.examples["moved"][0]
    assert {s.label: (s.a, s.b) for s in diff.labels}["praise"] == (0, 1)


def test_settings_sources_and_versions_are_compared(tmp_path: Path) -> None:
    rows: Splits = {"train": tickets(3)}
    a = write_dataset(tmp_path / "a", rows, tool_version="0.1")
    b = write_dataset(
        tmp_path / "b", rows, tool_version="0.2", config={"sources": ["moved.jsonl", "new.jsonl"], "split": {"val": 0.2}},
        sources=[{"path": "moved.jsonl", "sha256": "0", "rows": 3}, {"path": "new.jsonl", "sha256": "1", "rows": 9}],
    )  # fmt: skip
    diff = diff_datasets(a, b)
    assert diff.config == [{"key": "split.val", "a": 0.1, "b": 0.2}]
    assert diff.sources == [{"path": "new.jsonl", "a": None, "b": 9}]
    assert (diff.a["tool_version"], diff.b["tool_version"]) == ("0.1", "0.2")


@given(st.lists(st.tuples(st.sampled_from(["", "train", "val", "test"]), st.sampled_from(["", "train", "val", "test"]))))  # fmt: skip
def test_the_account_of_rows_adds_up(tmp_path: Path, places: list[tuple[str, str]]) -> None:
    sides: list[Splits] = [{"train": [], "val": [], "test": []} for _ in range(2)]
    for item, (old, new) in zip(tickets(len(places)), places, strict=True):
        for side, split in zip(sides, (old, new), strict=True):
            if split:
                side[split].append(item)
    diff = diff_datasets(*(write_dataset(tmp_path / name, side) for name, side in zip("ab", sides, strict=True)))
    assert diff.same + sum(diff.moved.values()) + sum(diff.removed.values()) == sum(bool(old) for old, _ in places)
    assert diff.same + sum(diff.moved.values()) + sum(diff.added.values()) == sum(bool(new) for _, new in places)


def test_a_missing_or_damaged_data_set_is_a_users_error(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", {"train": tickets(3)})
    with pytest.raises(UserError, match="No complete data set"):
        diff_datasets(folder, tmp_path / "nowhere")
    (folder / "train.jsonl").write_text('{"id": ')
    with pytest.raises(UserError, match="Not valid JSON"):
        diff_datasets(folder, folder)


def test_chi_square_takes_rare_classes_together() -> None:
    pytest.importorskip("scipy")
    assert chi_square([50, 50], [50, 50]) == pytest.approx(1.0)
    p = chi_square([90, 10], [60, 40])
    assert p is not None and p < 1e-4
    assert chi_square([100, *[1] * 30], [100, *[1] * 30]) == pytest.approx(1.0)


def test_too_few_rows_have_no_p_value() -> None:
    assert chi_square([5], [7]) is None
    assert chi_square([1000, 1000, 0, 0], [0, 0, 1, 1]) is None  # two rows can't be compared with anything


def test_one_shifted_label_among_many_is_told_though_all_together_are_not(tmp_path: Path) -> None:
    def side(more: int) -> Splits:
        labels = [*range(80)] * 20 + [0] * more
        return {"train": [row(f"ask {more} {i}", f"label {n}") for i, n in enumerate(labels)], "val": [], "test": []}

    diff = diff_datasets(write_dataset(tmp_path / "a", side(0)), write_dataset(tmp_path / "b", side(30)))
    assert [s.label for s in diff.labels if s.p < 0.05] == ["label 0"]
    assert diff.labels_p is None or diff.labels_p > 0.05
    alike = diff_datasets(write_dataset(tmp_path / "c", side(1)), write_dataset(tmp_path / "d", side(2)))
    assert not [s for s in alike.labels if s.p < 0.05]
