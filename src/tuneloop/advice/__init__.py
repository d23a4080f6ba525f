"""Whether to tune at all, by which method, and when it pays."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # What the user says of the case: traffic, prices, what was measured.
    from tuneloop.advice.config import AdviseOptions as AdviseOptions

    # What a model reads and computes for each token.
    from tuneloop.advice.economics import ModelFootprint as ModelFootprint

    # Requests a day, with their lengths.
    from tuneloop.advice.economics import QueryTraffic as QueryTraffic

    # A model on a GPU: tokens a second and dollars per 1,000 answers.
    from tuneloop.advice.economics import Serving as Serving

    # A GPU as what serves: bandwidth, arithmetic, price.
    from tuneloop.advice.economics import ServingGpu as ServingGpu

    # What serving a model costs on the GPU that fits it best.
    from tuneloop.advice.economics import serving as serving

    # Tokens that a GPU generates a second with a full batch.
    from tuneloop.advice.economics import serving_tokens_per_second as serving_tokens_per_second

    # Results of systems on the user's rows, as advice needs them.
    from tuneloop.advice.measured import BaselineResults as BaselineResults

    # Results that the user typed.
    from tuneloop.advice.measured import by_hand as by_hand

    # Facts for `advise` from several files.
    from tuneloop.advice.measured import combined_facts as combined_facts

    # Facts for `advise` from a file of results, a data set, or a folder.
    from tuneloop.advice.measured import facts_from_results as facts_from_results

    # Whether a file or folder holds results that advice can read.
    from tuneloop.advice.measured import holds_results as holds_results

    # The recommendation, with reasons, costs and break-even.
    from tuneloop.advice.recommendation import Advice as Advice

    # Recommend prompts, an encoder, a method of tuning, or none.
    from tuneloop.advice.recommendation import advise as advise

    # The question that `advise` answers, from values as typed or measured.
    from tuneloop.advice.recommendation import make_question as make_question

__getattr__, __dir__ = door(__name__)
