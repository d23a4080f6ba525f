"""A data format of your own: tickets with a list of comments, the last of which is the team's answer.

Run it: python examples/extend/new_format.py SOURCE OUT    (JSON lines such as {"ticket": "...", "comments": ["...", "..."]})
"""

import sys

import tuneloop
from tuneloop.data import PrepareConfig
from tuneloop.data.formats import (
    Draft,
    Format,
    FormatGuess,
    Record,
    RecordSample,
    Refused,
    add_format,
    assistant,
    checked_parser,
    filled,
    user,
)


def parse(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """The ticket and all comments but the last are the question."""
    asked, comments = filled(record, "ticket", "empty_input", guess), record.get("comments")
    if not isinstance(comments, list) or not all(isinstance(comment, str) for comment in comments):
        raise Refused("wrong_type", "column 'comments' is no list of texts")
    if not comments:
        raise Refused("empty_output", "column 'comments' is empty")
    return Draft([user("\n".join([asked, *comments[:-1]])), assistant(comments[-1])])


def find(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
    """Recognise the format by its two columns."""
    columns = {"prompt": "ticket", "completion": "comments"}
    return (
        FormatGuess("comments", columns, sample.seen(columns.values())) if sample.is_usual(*columns.values()) else None
    )


add_format(Format("comments", "ticket and comments", checked_parser(parse), find))

if __name__ == "__main__":
    dataset = tuneloop.prepare(sys.argv[1], out=sys.argv[2])
    print(dataset.manifest["format"]["name"], dataset.manifest["counts"])
