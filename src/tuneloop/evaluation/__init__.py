"""Answers judged: metrics with intervals, comparisons, the verdict, a judge, what tuning took away."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Evaluations in folders, each compared with the first, written with their page.
    from tuneloop.evaluation.comparison import compare_folders as compare_folders

    # The same without writing anything.
    from tuneloop.evaluation.comparison import paired_with_first as paired_with_first

    # What a run is compared with: settings.
    from tuneloop.evaluation.config import BaselinesConfig as BaselinesConfig

    # Rows and prompts of an evaluation, as options of a command.
    from tuneloop.evaluation.config import EvalOptions as EvalOptions

    # How answers are got and scored: settings.
    from tuneloop.evaluation.config import EvaluateConfig as EvaluateConfig

    # What a search for a prompt may use and spend.
    from tuneloop.evaluation.config import PromptOptions as PromptOptions

    # Whether a question in other words gets the same answer.
    from tuneloop.evaluation.consistency import consistency_part as consistency_part

    # The metric that decides about a data set, chosen before any answer is seen.
    from tuneloop.evaluation.deciding import deciding_of as deciding_of

    # Rows that two evaluations must share at least to be compared.
    from tuneloop.evaluation.evaluate import FEWEST_SHARED as FEWEST_SHARED

    # One system's answers to some rows, scored.
    from tuneloop.evaluation.evaluate import ScoredAnswers as ScoredAnswers

    # Refuse rows that share an id.
    from tuneloop.evaluation.evaluate import check_ids as check_ids

    # The order in which a seeded sample takes up rows, each group by its share.
    from tuneloop.evaluation.evaluate import sample_order as sample_order

    # A seeded sample of rows that have a reference.
    from tuneloop.evaluation.evaluate import sample_rows as sample_rows

    # Answers to a data set's rows, scored.
    from tuneloop.evaluation.evaluate import score_rows as score_rows

    # An evaluation of some of its rows.
    from tuneloop.evaluation.evaluate import some_rows as some_rows

    # What tuning took away, and what it learned word for word.
    from tuneloop.evaluation.forgetting import side_effects as side_effects

    # Two answers to a request, for a judge.
    from tuneloop.evaluation.judge import AnswerPair as AnswerPair

    # A model that compares and rates answers, with a measure of how far it can be trusted.
    from tuneloop.evaluation.judge import Judge as Judge

    # What to take from it before anything is tuned.
    from tuneloop.evaluation.leaderboard import leaderboard_in_words as leaderboard_in_words

    # The systems on one test set, with gains and prices.
    from tuneloop.evaluation.leaderboard import leaderboard_of as leaderboard_of

    # Two systems on the same rows: differences with intervals and tests.
    from tuneloop.evaluation.paired import compare as compare

    # Answers made elsewhere, each found to its row.
    from tuneloop.evaluation.predictions import answers_from as answers_from

    # The cheapest system that is good enough.
    from tuneloop.evaluation.recommended import recommended_system as recommended_system

    # An evaluation from its files, computed again.
    from tuneloop.evaluation.results import load_evaluation as load_evaluation

    # Write an evaluation with its comparisons, its leaderboard and its verdict.
    from tuneloop.evaluation.results import write_scored as write_scored

__getattr__, __dir__ = door(__name__)
