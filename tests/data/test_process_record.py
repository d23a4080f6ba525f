"""Short cuts of the first pass lead where the long way does."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuneloop.data.clean import pii, repair
from tuneloop.data.config import PersonalConfig, RepairConfig
from tuneloop.data.dataset import key64, meta_key
from tuneloop.data.process_record import is_quiet
from tuneloop.records.rows import Row

PIECES = (
    "password", "PASSWORD is", "jane at example dot com", "(at)", "[at]", "&amp;", "<s>", "[INST]", " ", "\t", "hello", "4111",
    "Why?", "isn?t", "é", "a.b", "key=", "10:30", "\u200b", "don't; stop!", "dot", "at", "sk-", "__", "~", "}", "%40", "", "abc12",
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join) | st.text(max_size=20))
@example("jane dot doe at example dot com")
@example("my passw is swordfish")
def test_what_needs_no_look_has_nothing_to_be_found(text: str) -> None:
    if is_quiet(text):
        assert repair.repair_text(text, RepairConfig()) == (text, ())
        assert pii.find(text, PersonalConfig()) == []


def test_everyday_texts_need_no_look() -> None:
    assert is_quiet("Where is my card? It hasn't arrived yet!") and is_quiet("card_arrival") and is_quiet("")
    assert not is_quiet("call 4155550132") and not is_quiet(" where") and not is_quiet("Ãœber")


def test_further_columns_of_any_kind_have_a_key() -> None:
    def key(**meta: object) -> int:
        return meta_key(Row("0", [], meta={"source": "a", "line": 1, **meta}))

    assert key() == 0 and key(a=1, b="x") == key(b="x", a=1) != key(a=1, b="y")
    assert key(n=2**70) == key64(json.dumps({"n": 2**70})) and key(n=1.5) != key(n=1)
