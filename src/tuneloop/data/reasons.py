"""The words of `rejects.jsonl` and `repairs.jsonl`, and what each means: a fixed list, for people and programs."""

from __future__ import annotations

REASONS = {
    "bad_encoding": "bytes of a text or a table that are no UTF-8, or half of a surrogate pair",
    "bad_arguments": "the arguments of a tool call are no JSON object",
    "bad_turn_order": "turns in an order that no conversation has: an answer before any question, two tools' answers to one call",
    "blank_line": "an empty line between records; counted as nobody's fault",
    "broken_csv": "a quote that is not closed, or more cells than the header has",
    "broken_json": "not valid JSON (RFC 8259): the record itself, bytes that are no UTF-8, or JSON inside one of its columns",
    "conflicting_label": "the same text stands under another label or answer, and duplicates.conflicts drops such rows",
    "cut_file": "the compressed file ends before its data does: everything after this line is missing",
    "empty_input": "nothing is asked: the text, the prompt or a user turn is empty",
    "empty_output": "nothing is answered: the label, the output or an assistant turn is empty",
    "error_output": "the answer is the message of a failed call, not an answer",
    "exact_duplicate": "equal to an earlier record up to Unicode form, white space and case; counted as nobody's fault",
    "forgotten": "removed on a person's request (tuneloop data forget)",
    "line_too_long": "one line or row of more than 4 MiB: skipped, not held in memory",
    "missing_field": "a column or key that the format needs is not there",
    "near_duplicate": "nearly equal to another record (duplicates.threshold); counted as nobody's fault",
    "no_answer": "the conversation does not end with the assistant's turn",
    "no_preference": "the chosen and the rejected answer are the same, or answer different prompts",
    "no_supervised_token": "nothing in the rendered row is trained on",
    "over_limit": "left out on request (limit_per_label); counted as nobody's fault",
    "personal_data": "holds personal data, and personal.mode is reject",
    "semantic_duplicate": "means the same as another record (duplicates.semantic); counted as nobody's fault",
    "split_leak": "the same as, or nearly, a row of the given or frozen test set: training on it would spoil the measurement",
    "template_error": "the model's chat template can't render the conversation",
    "too_long": "more tokens than max_length",
    "truncated_output": "the logged response was cut off at a length limit, or its stream broke off",
    "unanswered_call": "a tool call that no tool turn answers before the conversation goes on",
    "unknown_label": "a label outside data.labels",
    "unknown_role": "a turn of a speaker that no format knows",
    "wrong_language": "in another language than data.language",
    "wrong_type": "a value of another kind than the format needs: a record that is no object, a text that is a list, an array without a turn",
}

HARMLESS = (
    "blank_line",
    "exact_duplicate",
    "forgotten",
    "near_duplicate",
    "over_limit",
    "semantic_duplicate",
    "split_leak",
)  # don't count towards allow_rejects

REPAIRS = {
    "cut": "a row over max_length was cut (too_long=truncate)",
    "dropped_turn": "an empty system turn was left out",
    "encoding": "text that had been read in the wrong encoding (mojibake) was restored",
    "html_entities": "HTML entities became the characters they stand for",
    "json_syntax": "what JSON forbids was read all the same (repair.json_syntax): a raw control character inside a string, NaN, Infinity",
    "invisible_characters": "zero-width, control or soft-hyphen characters were removed",
    "merged_turns": "turns of one speaker in a row became one, joined by a line break",
    "pii": "personal data or a secret was replaced; `detail` names the kind, never the value",
    "special_tokens": "a model's control token inside a text was neutralised",
    "split": "a row over max_length became several (too_long=split); `meta` tells which part of which row",
    "trimmed": "white space around a label was removed",
    "unicode_form": "text was brought into Unicode normal form C",
    "unknown_role": "a name of a speaker that these data don't use otherwise was read as one of the known roles",
    "white_space": "line ends and exotic spaces were unified, white space at the ends removed",
}
