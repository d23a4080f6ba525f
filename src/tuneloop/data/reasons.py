"""The words of `rejects.jsonl` and `repairs.jsonl`, and what each means: a fixed list, for people and programs."""

from __future__ import annotations

REASONS = {
    "bad_encoding": "bytes that are no UTF-8, or half of a surrogate pair",
    "blank_line": "an empty line between records; counted as nobody's fault",
    "broken_csv": "a quote that is not closed, or more cells than the header has",
    "broken_json": "not valid JSON: the record itself, or JSON inside one of its columns",
    "empty_input": "nothing is asked: the text, the prompt or a user turn is empty",
    "empty_output": "nothing is answered: the label, the output or an assistant turn is empty",
    "exact_duplicate": "equal to an earlier record up to Unicode form, white space and case; counted as nobody's fault",
    "missing_field": "a column or key that the format needs is not there",
    "no_answer": "the conversation does not end with the assistant's turn",
    "no_supervised_token": "nothing in the rendered row is trained on",
    "over_limit": "left out on request (limit_per_label); counted as nobody's fault",
    "template_error": "the model's chat template can't render the conversation",
    "too_long": "more tokens than max_length",
    "unknown_label": "a label outside data.labels",
    "unknown_role": "a turn of a speaker that no format knows",
    "wrong_type": "a value of another kind than the format needs: a record that is no object, a text that is a list",
}

HARMLESS = ("blank_line", "exact_duplicate", "over_limit")  # don't count towards allow_rejects

REPAIRS = {
    "dropped_turn": "an empty system turn was left out",
    "merged_turns": "turns of one speaker in a row became one, joined by a line break",
    "trimmed": "white space around a label was removed",
}
