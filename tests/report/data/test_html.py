"""A data set's report: every section from the files alone, safe with hostile text, bounded, no personal data."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import manifest_json
from test_html import look, parse

from tuneloop.core.errors import UserError
from tuneloop.records.rows import Row
from tuneloop.report.data import facts as data_facts
from tuneloop.report.data.facts import Flow, FlowStage, find_conflicts, flow_of, mask, read_data
from tuneloop.report.data.html import (
    difference,
    flow_chart,
    from_difference,
    render_data_report,
    side_by_side,
    split_labels_chart,
    visible,
    write_data_report,
)
from tuneloop.report.samples import same_end

HOSTILE = "</script><img src=x onerror=alert(1)></style><b>x</b>{{ 7 * 7 }} \x1b[31m \ud800 \u202e'\"&amp;"
SECTIONS = [
    "flow",
    "checks",
    "shape",
    "suspects",
    "conflicts",
    "duplicates",
    "repairs",
    "redacted",
    "rejects",
    "samples",
]


def lines(path: Path, records: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def row(i: int, label: str, text: str = "") -> dict[str, Any]:
    turns = [("system", "Classify the text."), ("user", text or f"Where is card {i}?"), ("assistant", label)]
    return {
        "id": f"{i:016x}",
        "messages": [{"role": role, "content": content} for role, content in turns],
        "label": label,
        "meta": {"source": "data/in.jsonl", "line": i + 1, "created": 5},
    }


def manifest_of(sizes: dict[str, int], text: str) -> dict[str, Any]:
    rejected = {"exact_duplicate": 7, "broken_json": 3, "personal_data": 1, "too_long": 2}
    kept = sum(sizes.values())
    tokens = {"total": 900, "supervised": 90, "min": 9, "p50": 30, "p90": 60, "max": 90, "mean": 31.0}
    return {
        "version": 1,
        "id": f"in-0123456789ab{text}",
        "name": f"in{text}",
        "hash": "ab" * 32,
        "task": "classification",
        "format": {"name": "text_label", "columns": {"text": "text"}, "reason": f"columns text, label{text}"},
        "labels": [f"label_{i}" for i in range(40)],
        "sources": [{"path": "data/in.jsonl", "sha256": "cd" * 32, "rows": kept + 13}],
        "config": {"max_length": 100, "personal": {"mode": "placeholder"}, "instruction": f"Classify.{text}"},
        "counts": {"read": kept + 13, "kept": kept, "rejected": 13, **sizes},
        "rejected": rejected,
        "repaired": {"encoding": 2, "pii": 3, "white_space": 5},
        "personal": {"EMAIL": 2, "PHONE": 1},
        "splits": {
            s: {"path": f"{s}.jsonl", "rows": n, "sha256": "ef" * 32, "tokens": tokens, "labels": {f"label_{i}{text}": 40 - i for i in range(40)}}
            for s, n in sizes.items()
        },
        "languages": {"en": 90, f"de{text}": 10},
        "words": {"broken_json": f"not valid JSON{text}", "encoding": "restored", "cut": "was cut"},
        "checks": [
            {"name": "enough_rows", "level": "ok", "message": f"plenty{text}", "rows": 3},
            {"name": "balance", "level": "warn", "message": f"uneven{text}", "rows": 4, "remedy": f"add rows{text}", "examples": []},
            {
                "name": "leak",
                "level": "error",
                "message": f"leaks{text}",
                "rows": 2,
                "remedy": "group them",
                "examples": [{"source": "data/in.jsonl", "line": 4, "id": "x", "text": f"leaky{text}"}, f"as text{text}"],
            },
        ],
    }  # fmt: skip


def build(folder: Path, text: str = "") -> Path:
    """A whole folder as the prepare stage writes it; `text` stands in every field that data can fill."""
    folder.mkdir(parents=True)
    sizes = {"train": 60, "val": 8, "test": 8}
    (folder / "dataset.json").write_text(json.dumps(manifest_of(sizes, text)), encoding="utf-8")
    for split, n in sizes.items():
        rows = [row(i, f"label_{i % 7}{text}", f"Where is card {i}?{text}") for i in range(n)]
        lines(
            folder / f"{split}.jsonl",
            [*rows[:-2], row(90, "a" + text, "Same?" + text), row(91, "b" + text, "same? " + text)],
        )
    at = {"source": "data/in.jsonl", "line": 5}
    lines(
        folder / "rejects.jsonl",
        [
            {**at, "reason": "exact_duplicate", "detail": f"of data/in.jsonl:2{text}", "record": {"text": f"dup{text}", "n": 1}},
            {**at, "reason": "broken_json", "detail": f"column 3{text}", "record": f'{{"a": {text}'},
            {**at, "reason": "personal_data", "detail": "text: EMAIL", "record": {"text": "eve@secret.example"}},
            {**at, "reason": "too_long", "detail": "3 tokens", "record": {f"k{text}": [text], "mail": "bob@private.example"}},
        ],
    )  # fmt: skip
    repair = {**at, "id": "x", "field": f"text{text}"}
    lines(
        folder / "repairs.jsonl",
        [
            {**repair, "kind": "encoding", "before": f"itâ€™s late{text}", "after": f"it’s late{text}"},
            {**repair, "kind": "white_space", "before": f"a\u00a0b\t{text}", "after": f"a b{text}"},
            {**repair, "kind": "pii", "detail": "EMAIL x2, PHONE", "before": "ann@hidden.example"},
            {**repair, "kind": "merged_turns", "detail": f"turns 2 and 3{text}"},
        ],
    )
    lines(
        folder / "duplicates.jsonl",
        [
            {
                **at, "id": "g", "kept_source": "data/in.jsonl", "kept_line": 9, "kept_id": "k", "similarity": 0.8 + i / 100,
                "kind": ["near", "exact"][i % 2], "why": f"first stays{text}", "text": f"My cards lost{text}", "kept_text": f"My card lost{text}",
            }
            for i in range(12)
        ],
    )  # fmt: skip
    lines(
        folder / "label_errors.jsonl",
        [{**at, "id": str(i), "split": "train", "label": f"l{text}", "suggested": f"s{text}", "score": i / 20, "confident": True, "text": f"odd {i}{text}"} for i in range(15)],
    )  # fmt: skip
    return folder


def plain(page: str) -> str:
    """What a reader sees, on one line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.S).replace("<wbr>", "")
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def section(page: str, name: str) -> str:
    return re.split(r"<section id=|</main>", page[page.index(f'<section id="{name}"') + 1 :])[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_data_report(build(tmp_path_factory.mktemp("data") / "in"))


def test_a_whole_folder_shows_every_section(page: str) -> None:
    parser = parse(page)
    assert re.findall(r'<section id="(\w+)"', page) == ["flow", "checks", "shape", *SECTIONS[3:], "record"]
    targets = {attrs["href"] for tag, attrs in parser.seen if tag == "a"}
    assert targets == {f"#{name}" for name in [*SECTIONS, "record"]}
    text = plain(page)
    for part in (
        "89 records read as text_label (columns text, label); 76 rows kept for classification.",
        "2 of 3 checks want a look, 1 of them errors.",
        "60 8 val, 8 test",
        "What to do: group them",
        "the 30 most frequent of 40",
        "The other 10 labels",
        "limit 100",
        "en 90 % de 10 %",
        "EMAIL 2 PHONE 1",
        "broken json 3 not valid JSON",
        "cut was cut",
        "max_length: 100",
        "0.05",
    ):
        assert part in text, part


def test_the_system_turn_of_the_template_is_shown_where_rows_have_none(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    turns = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "Here."}]
    manifest = manifest_json(counts={"train": 1}, template_adds="You are a parrot.")
    (folder / "dataset.json").write_text(json.dumps(manifest))
    (folder / "train.jsonl").write_text(json.dumps({"id": "1", "messages": turns, "meta": {}}) + "\n")
    text = plain(section(render_data_report(folder), "samples"))
    assert "The chat template of the model adds a system turn" in text and "You are a parrot." in text
    own = [{"role": "system", "content": "Be brief."}, *turns]
    (folder / "train.jsonl").write_text(json.dumps({"id": "1", "messages": own, "meta": {}}) + "\n")
    assert "parrot" not in section(render_data_report(folder), "samples")


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    parser = parse(page)
    assert not {tag for tag, _ in parser.seen} & {"script", "link", "img", "iframe", "object"}
    assert all(str(attrs.get("href", "#")).startswith("#") for _, attrs in parser.seen)
    assert not re.search(r"url\(|@import", page)


def test_checks_stand_worst_first_and_fine_ones_are_folded(page: str) -> None:
    text = plain(section(page, "checks"))
    assert text.index("leaks") < text.index("uneven") < text.index("1 without a finding") < text.index("plenty")
    assert "in.jsonl:4" in text and "leaky" in text and "as text" in text


def test_hostile_text_in_every_field_is_never_markup(tmp_path: Path) -> None:
    page = render_data_report(build(tmp_path / "in", HOSTILE))
    parser = parse(page)
    assert not {tag for tag, _ in parser.seen} & {"script", "img", "b"}
    assert not any(name.startswith("on") for _, attrs in parser.seen for name in attrs)
    assert page.count("<style>") == page.count("</style>") == 1
    assert page.count("onerror=alert(1)") > 100 and "{{ 7 * 7 }}" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", page)
    page.encode("utf-8")


def test_hostile_json_of_any_shape_never_breaks_the_page(tmp_path: Path) -> None:
    anything = st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
    folder = build(tmp_path / "in")
    whole = json.loads((folder / "dataset.json").read_text())
    files = {p.name: [json.loads(line) for line in p.open(encoding="utf-8")] for p in folder.glob("*.jsonl")}

    @settings(max_examples=25)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        broken = {
            **whole,
            **{k: data.draw(anything) for k in data.draw(st.sets(st.sampled_from(sorted(whole)), max_size=4))},
        }
        (folder / "dataset.json").write_text(json.dumps(broken))
        for name, records in files.items():
            key = data.draw(st.sampled_from(sorted(records[0])))
            lines(folder / name, [{**records[0], key: data.draw(anything)}, data.draw(anything), *records[1:]])
        parse(render_data_report(folder))

    check()


@pytest.mark.parametrize(
    "missing", ["rejects.jsonl", "repairs.jsonl", "train.jsonl", "test.jsonl", "duplicates.jsonl", "label_errors.jsonl"]
)
def test_any_file_but_the_manifest_may_be_missing(tmp_path: Path, missing: str) -> None:
    folder = build(tmp_path / "in")
    (folder / missing).unlink()
    parse(render_data_report(folder))


def test_a_refused_data_set_shows_its_rejects_and_says_that_it_is_not_complete(tmp_path: Path) -> None:
    folder = build(tmp_path / "in")
    (folder / "dataset.json").unlink()
    text = plain(render_data_report(folder))
    assert "dataset.json is not there: the data set is not complete" in text
    assert "broken json 1" in text and "exact duplicate 1" in text


def test_a_folder_without_a_data_set_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset\.json"):
        write_data_report(tmp_path)
    with pytest.raises(UserError, match="No such folder"):
        write_data_report(tmp_path / "nowhere")


def test_writing_is_repeatable_and_stands_in_the_folder(tmp_path: Path) -> None:
    folder = build(tmp_path / "in")
    first = write_data_report(folder)
    assert first == folder / "report.html"
    before = first.read_bytes()
    assert write_data_report(folder).read_bytes() == before


# --- personal data -----------------------------------------------------------------------------


def test_no_personal_value_stands_in_the_page(page: str) -> None:
    for value in ("eve@secret.example", "bob@private.example", "ann@hidden.example"):
        assert value not in plain(page) and value.split("@")[0] + "@" not in page
    assert "&lt;EMAIL&gt;" in section(page, "rejects")
    assert plain(section(page, "repairs")).count("pii") == 0


def test_what_a_repair_says_of_personal_data_is_not_shown(tmp_path: Path) -> None:
    folder = build(tmp_path / "in")
    lines(folder / "repairs.jsonl", [{"source": "a", "line": 1, "id": "x", "kind": "pii", "field": "t", "detail": d} for d in
                                     ("eve@secret.example", "EMAIL", "IBAN DE89370400440532013000")])  # fmt: skip
    assert read_data(folder).redacted == {"EMAIL": 2.0, "PHONE": 1.0}, "kinds are counted by the manifest"
    assert "DE8937" not in plain(render_data_report(folder))


@pytest.mark.parametrize(("mode", "shown"), [("placeholder", True), ("report", False), ("off", True)])
def test_rows_of_the_splits_are_shown_as_they_are_unless_values_were_only_reported(
    tmp_path: Path, mode: str, shown: bool
) -> None:
    folder = build(tmp_path / "in")
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["config"]["personal"]["mode"] = mode
    (folder / "dataset.json").write_text(json.dumps(manifest))
    lines(folder / "val.jsonl", [row(1, "a", "I am kim@stand-in.example")])
    assert ("kim@stand-in.example" in plain(render_data_report(folder))) is shown


def test_what_is_hidden_beyond_the_coarse_net_is_told_to_the_page(tmp_path: Path) -> None:
    folder = build(tmp_path / "in")
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["config"]["personal"]["mode"] = "report"
    (folder / "dataset.json").write_text(json.dumps(manifest))
    lines(folder / "val.jsonl", [row(1, "a", "I live at 5 Elm Road, write to kim@stand-in.example")])
    page = plain(render_data_report(folder, lambda text: text.replace("5 Elm Road", "<STREET_ADDRESS>")))
    assert "I live at <STREET_ADDRESS>, write to <EMAIL>" in page and "Elm" not in page


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("mail jane.doe+x@example.co.uk now", "mail <EMAIL> now"),
        ("call +49 (170) 123-4567.", "call <NUMBER>."),
        ("card 4111 1111 1111 1111", "card <NUMBER>"),
        ("key sk-abc123DEF456ghi789JKL0", "key <SECRET>"),
        ("version 9.10.9, 12 cards, 2024-05-01, 1,200 euros", None),
        ("balance_not_updated_after_cheque_or_cash_deposit", None),
    ],
)
def test_a_coarse_net_hides_addresses_numbers_and_keys(text: str, hidden: str | None) -> None:
    shown = mask(text)
    assert shown == hidden if hidden else shown.count("<") <= ("2024" in text)


# --- bounds ------------------------------------------------------------------------------------


def test_large_files_are_read_to_a_bound_and_counts_come_from_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_facts, "MOST_ROWS", 20)
    monkeypatch.setattr(data_facts, "MOST_LINES", 50)
    folder = build(tmp_path / "in")
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["counts"]["train"] = 1_000_000
    (folder / "dataset.json").write_text(json.dumps(manifest))
    item = {"source": "s", "line": 1, "reason": "broken_json", "detail": "", "record": "x"}
    lines(folder / "rejects.jsonl", [*[item] * 60, {**item, "reason": "too_long"}])
    facts = read_data(folder)
    assert facts.rows_read["train"] == 20
    assert len(facts.rejects["broken_json"]) == data_facts.EXAMPLES and "too_long" not in facts.rejects
    assert "4 of 1,000,000 rows" in plain(render_data_report(folder))


def test_a_huge_line_is_passed_over_without_being_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_facts, "LONGEST_LINE", 1000)
    folder = build(tmp_path / "in")
    lines(folder / "val.jsonl", [row(1, "a"), row(2, "a", "x" * 5000), row(3, "b")])
    facts = read_data(folder)
    assert facts.rows_read["val"] == 2
    assert [r.label for r in facts.samples["val"]] == ["a", "b"]
    assert any("val.jsonl: 1 record of more than" in p for p in facts.problems)


def test_a_manifest_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = build(tmp_path / "in")
    lines(tmp_path / "secret.jsonl", [row(1, "outside")])
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["splits"]["train"]["path"] = "../secret.jsonl"
    (folder / "dataset.json").write_text(json.dumps(manifest))
    assert "outside" not in plain(render_data_report(folder))


# --- parts -------------------------------------------------------------------------------------


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_difference_holds_both_texts(before: str, after: str) -> None:
    parts = difference(before, after)
    if before.isascii() and before.isprintable() and before.strip() and after == "":
        assert parts == [("del", before)]
    if before == after:
        assert all(kind == "" for kind, _ in parts)
    left, right = side_by_side(before, after)
    assert all(kind != "ins" for kind, _ in left) and all(kind != "del" for kind, _ in right)


@given(st.text("ab c,.é", max_size=30), st.text("ab c,.é", max_size=30))
def test_the_kept_and_deleted_parts_are_the_text_before(before: str, after: str) -> None:
    parts = difference(before, after)
    assert "".join(t for k, t in parts if k != "ins").replace("␣", " ") == before
    assert "".join(t for k, t in parts if k != "del").replace("␣", " ") == after


def test_changes_that_no_eye_could_see_are_written_out() -> None:
    assert difference("My card\u200b here", "My card here") == [("", "My card"), ("del", "[U+200B]"), ("", " here")]
    assert difference("cafe\u0301", "café", combining=True)[0] == ("del", "cafe[U+0301]")
    assert visible("a\u00a0b\n") == "a[U+00A0]b↵\n" and visible("  ") == "␣␣"


def test_side_by_side_marks_words_and_not_case() -> None:
    left, right = side_by_side("My card is lost", "MY  card was lost")
    assert [t for k, t in left if k] == ["is"] and [t for k, t in right if k] == ["was"]
    assert "".join(t for _, t in right) == "MY  card was lost"


def test_duplicates_show_which_row_stays_the_doubtful_first(page: str) -> None:
    text = plain(section(page, "duplicates"))
    assert text.index("similarity 0.80") < text.index("similarity 0.82") < text.index("exact")
    assert "✓ stays in.jsonl:9 My card lost ✗ goes in.jsonl:5 My cards lost" in text
    assert "4 more pairs" in text


def test_repairs_are_shown_as_differences(page: str) -> None:
    shown = section(page, "repairs")
    assert "<del>itâ€™</del><ins>it’</ins>s late" in shown
    assert "[U+00A0]" in shown and "turns 2 and 3" in shown


def test_conflicts_are_found_up_to_case_and_white_space_across_splits() -> None:
    rows = {
        "train": [row(1, "a", "Where is it?"), row(2, "a", "Other")],
        "test": [row(3, "b", "where  IS it?"), row(4, "A", "other")],
    }
    conflicts, n = find_conflicts({split: [Row.from_json(r) for r in some] for split, some in rows.items()})
    assert n == 2 and [(a.split, a.line, a.answer) for a in conflicts[0].answers] == [
        ("train", 2, "a"),
        ("test", 4, "b"),
    ]
    assert conflicts[0].question == "Where is it?"


def test_one_user_turn_at_other_points_of_a_conversation_is_no_conflict() -> None:
    def chat(*turns: tuple[str, str]) -> Row:
        return Row.from_json({"id": "1", "messages": [{"role": role, "content": text} for role, text in turns]})

    early = chat(("user", "yes"), ("assistant", "Which card?"))
    late = chat(("user", "A card?"), ("assistant", "Shall I block it?"), ("user", "yes"), ("assistant", "Done."))
    assert find_conflicts({"train": [early, late]}) == ([], 0)
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "block", "arguments": '{"n": 1}'}}],
    }
    other = Row.from_json({"id": "2", "messages": [{"role": "user", "content": "yes"}, call]})
    conflicts, n = find_conflicts({"train": [early, other]})
    assert n == 2 and conflicts[0].answers[1].answer == 'block({"n": 1})'


def test_the_flow_accounts_for_every_record(tmp_path: Path) -> None:
    flow = flow_of(read_data(build(tmp_path / "in")))
    assert flow is not None and flow.added == 0
    assert flow.read - sum(n for stage in flow.stages for _, n in stage.exits) == flow.stages[-1].rows == 76
    assert sum(n for _, n in flow.splits) == 76
    assert [s.name for s in flow.stages] == ["parsed", "repaired", "redacted", "deduplicated", "measured"]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12), st.integers(0, 10**6), st.sampled_from([350.0, 760.0]))
def test_the_flow_is_drawn_inside_its_width(exits: list[int], kept: int, width: float) -> None:
    read = sum(exits) + kept
    if not read:
        return
    pairs = tuple((f"reason_{i}", float(n)) for i, n in enumerate(exits) if n)
    chart = str(
        flow_chart(Flow(read, (FlowStage("parsed", kept, pairs),), (("train", float(kept)), ("val", 0.0))), width)
    )
    assert "nan" not in chart and "-" not in "".join(re.findall(r'(?:width|height)="([^"]*)"', chart))
    coordinates = [
        float(x) for d in re.findall(r' d="([^"]*)"', chart) for x, _ in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", d)
    ]
    assert all(-0.01 <= x <= width for x in coordinates)


def test_labels_are_stacked_by_split_and_cut_to_the_most_frequent() -> None:
    splits = {"train": {f"l{i}": 50 - i for i in range(40)}, "val": {"l39": 100}, "test": {}}
    chart = str(split_labels_chart(splits))
    assert chart.count("<g>") == 30 and "l39: train 11, val 100" in chart and "30 most frequent of 40" in chart
    assert str(split_labels_chart({})) == ""


# --- in a browser ------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("text", ["", " wieeinsehrlangesWortohneTrennstelle" * 6])
def test_nothing_sticks_out_on_a_phone(tmp_path: Path, text: str) -> None:
    page = render_data_report(build(tmp_path / "in", text)).replace("<details", "<details open")
    seen = look(page, tmp_path)
    assert seen["scroll"] == 390 and seen["wide"] == []
    assert seen["narrow"] is True and isinstance(seen["charts"], int) and seen["charts"] >= 3


def test_make_nothing_up(tmp_path: Path) -> None:
    """A manifest with counts alone gives a page with those counts and no empty section."""
    (tmp_path / "dataset.json").write_text(json.dumps(manifest_json(counts={"read": 3, "kept": 3, "train": 3})))
    page = render_data_report(tmp_path)
    parse(page)
    assert re.findall(r'<section id="(\w+)"', page) == ["flow", "shape", "record"]


def test_a_manifest_that_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = build(tmp_path / "in")
    whole = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**whole, "counts": {"read": "many"}}))
    text = plain(render_data_report(folder))
    assert "dataset.json could not be read: The file is damaged: counts.read" in text
    assert "broken json 1" in text and "exact duplicate 1" in text


def test_long_duplicates_are_shown_from_where_they_differ(tmp_path: Path) -> None:
    shared = "the same long beginning of both rows " * 40
    item, other = from_difference(f"{shared}kept end", f"{shared}gone end", 200)
    assert item.endswith("kept end") and other.endswith("gone end") and item.startswith("… ") and len(item) <= 200
    assert from_difference("short", "shorter", 200) == ("short", "shorter")
    assert from_difference(f"a {shared}", f"b {shared}", 200) == (f"a {shared}", f"b {shared}")


def test_where_excerpts_end_is_no_change() -> None:
    text = "The parcel has been at the hub since Monday and nobody answers the phone. " * 4
    before, after = f"\u201cHello\u201d\u200b\u200b, {text}", f'"Hello", {text}'
    cut = [f"{t[:160]}…" for t in (before, after)]  # as repairs.jsonl keeps them
    parts = difference(*same_end(*cut, 500))
    assert [kind for kind, _ in parts][-1] == "" and parts[-1][1].endswith("…")
    assert "".join(t for k, t in parts if k == "ins") == '""'
    assert same_end("wait…", "wait...", 500) == ("wait…", "wait..."), "a short text was not cut"
    long = same_end("a " + text * 9, "a b " + text * 9, 200)
    assert [k for k, _ in difference(*long)] == ["", "ins", ""]
