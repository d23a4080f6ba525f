"""Records of many shapes to conversations: the formats, and the parts that a new one is made of."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # What a format makes of a record, before the checks that all formats share.
    from tuneloop.data.formats.draft import Draft as Draft

    # A shape of records.
    from tuneloop.data.formats.draft import Format as Format

    # The shape of some records, as a sample shows it.
    from tuneloop.data.formats.draft import FormatGuess as FormatGuess

    # A record, as it was read.
    from tuneloop.data.formats.draft import Record as Record

    # The first records of the sources.
    from tuneloop.data.formats.draft import RecordSample as RecordSample

    # Why a record is no training example.
    from tuneloop.data.formats.draft import Rejection as Rejection

    # Make a format known; it is looked for before all others.
    from tuneloop.data.formats.draft import add_format as add_format

    # A value, read where it is an object or array in JSON.
    from tuneloop.data.formats.draft import as_value as as_value

    # The parser of a format whose drafts pass the checks that all share.
    from tuneloop.data.formats.draft import checked_parser as checked_parser

    # A text where it is one and not empty.
    from tuneloop.data.formats.draft import filled as filled

    # The first value that is there, by paths that may lead into objects.
    from tuneloop.data.formats.draft import first as first

    # The objects of a list; none where it is no list.
    from tuneloop.data.formats.draft import objects as objects

    # The turn that a logged response holds, and why it ended.
    from tuneloop.data.formats.exchanges import logged_answer as logged_answer

    # The turns of a logged request, and its tools.
    from tuneloop.data.formats.exchanges import logged_request as logged_request

    # Whether a value is the body of a request, or wraps one.
    from tuneloop.data.formats.exchanges import looks_like_request as looks_like_request

    # Whether a value is what a chat API answers.
    from tuneloop.data.formats.exchanges import looks_like_response as looks_like_response

    # Refuse a configured column that no record has.
    from tuneloop.data.formats.guess import check_columns as check_columns

    # The format of records, from what is configured and what most of them show.
    from tuneloop.data.formats.guess import detect as detect

    # Keys of turns in the OpenAI form.
    from tuneloop.data.formats.turns import PLAIN_KEYS as PLAIN_KEYS

    # A record that a format can't use.
    from tuneloop.data.formats.turns import Refused as Refused

    # A turn of the assistant.
    from tuneloop.data.formats.turns import assistant as assistant

    # Tool definitions in the OpenAI form.
    from tuneloop.data.formats.turns import read_tools as read_tools

    # Turns in the OpenAI form.
    from tuneloop.data.formats.turns import read_turns as read_turns

    # Text as it is quoted in details.
    from tuneloop.data.formats.turns import short as short

    # A turn of the user.
    from tuneloop.data.formats.turns import user as user

__getattr__, __dir__ = door(__name__)
