"""Personal data and secrets: found, replaced, and erased from data sets."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Settings of personal data: what is looked for, and what happens to it.
    from tuneloop.data.config import PersonalConfig as PersonalConfig

    # Something that was made from a data set.
    from tuneloop.data.pii.erase import Descendant as Descendant

    # The result of an erasure.
    from tuneloop.data.pii.erase import Forgotten as Forgotten

    # What distinguishes a person's rows from the others.
    from tuneloop.data.pii.erase import Matcher as Matcher

    # A data set with the rows that match.
    from tuneloop.data.pii.erase import SubjectRows as SubjectRows

    # Data sets, runs and evaluations that come from a data set.
    from tuneloop.data.pii.erase import descendants as descendants

    # A person's rows in a data set; nothing is changed.
    from tuneloop.data.pii.erase import find_rows as find_rows

    # Remove a person's rows from a data set.
    from tuneloop.data.pii.erase import forget as forget

    # How personal data were treated in a data set.
    from tuneloop.data.pii.erase import personal_settings as personal_settings

    # The pseudonyms of a value in a data set.
    from tuneloop.data.pii.erase import pseudonyms_of as pseudonyms_of

    # The variable with the key of pseudonyms, where no other is named.
    from tuneloop.data.pii.redact import DEFAULT_SECRET as DEFAULT_SECRET

    # A kind of personal data.
    from tuneloop.data.pii.redact import Kind as Kind

    # Replaces personal data in records, and counts.
    from tuneloop.data.pii.redact import Redactor as Redactor

    # Make a kind known: it is replaced and counted like the others.
    from tuneloop.data.pii.redact import add_kind as add_kind

    # A text with placeholders for personal data, to be shown.
    from tuneloop.data.pii.redact import hidden as hidden

__getattr__, __dir__ = door(__name__)
