"""Metrics: what each is called, which way is better, how it is written, and how some are computed."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # What an evaluation shows of one system against another by a metric.
    from tuneloop.evaluation.metrics.claims import claim_between as claim_between

    # The difference by a metric as part of a sentence.
    from tuneloop.evaluation.metrics.claims import difference_in_words as difference_in_words

    # Make a function the user's own metric.
    from tuneloop.evaluation.metrics.custom import metric as metric

    # Make the user's own metrics known.
    from tuneloop.evaluation.metrics.declared import declare as declare

    # The headline metrics of a kind of answers.
    from tuneloop.evaluation.metrics.declared import headline_of as headline_of

    # The metric to go by where nothing says which one decides.
    from tuneloop.evaluation.metrics.declared import likely_to_decide as likely_to_decide

    # Whether a smaller value is better.
    from tuneloop.evaluation.metrics.declared import lower_is_better as lower_is_better

    # What is declared of a metric.
    from tuneloop.evaluation.metrics.declared import metric_of as metric_of

    # A metric's name as people read it.
    from tuneloop.evaluation.metrics.declared import title_of as title_of

    # The unit tests that a row brings.
    from tuneloop.evaluation.metrics.kinds import problem_of as problem_of

    # The answer that no label applies.
    from tuneloop.evaluation.metrics.labels import NO_LABELS as NO_LABELS

    # The labels of rows that have several.
    from tuneloop.evaluation.metrics.labels import label_lists as label_lists

    # What finds the label that an answer names.
    from tuneloop.evaluation.metrics.labels import label_matcher as label_matcher

    # The fields in which an answer in JSON differs from its reference.
    from tuneloop.evaluation.metrics.objects import differing_fields as differing_fields

    # The JSON Schema of a file.
    from tuneloop.evaluation.metrics.structured import read_schema as read_schema

    # Overlap of words with the best reference.
    from tuneloop.evaluation.metrics.text import token_f1 as token_f1

    # Metrics that are shares, as a reader says them.
    from tuneloop.evaluation.metrics.written import SHARES as SHARES

    # The interval of a change.
    from tuneloop.evaluation.metrics.written import gain_interval as gain_interval

    # An interval.
    from tuneloop.evaluation.metrics.written import interval as interval

    # A metric's value.
    from tuneloop.evaluation.metrics.written import metric_text as metric_text

    # How a share is written as per cent.
    from tuneloop.evaluation.metrics.written import percentage as percentage

    # A change, with its sign.
    from tuneloop.evaluation.metrics.written import signed as signed

    # A value with its interval.
    from tuneloop.evaluation.metrics.written import with_interval as with_interval

__getattr__, __dir__ = door(__name__)
