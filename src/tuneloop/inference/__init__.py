"""One way to get answers: engines that serve, and targets that answer rows, whatever computes them."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # A server of OpenAI's API and one of its models: address, key, limits, price.
    from tuneloop.inference.endpoint import Endpoint as Endpoint

    # What requests to a server came to and cost, in a line.
    from tuneloop.inference.endpoint import endpoint_line as endpoint_line

    # The API key in an environment variable.
    from tuneloop.inference.endpoint import key_from as key_from

    # The likeliest labels of an answer with their probabilities.
    from tuneloop.inference.labels import label_distribution as label_distribution

    # The tokens of labels as answers.
    from tuneloop.inference.labels import label_ids as label_ids

    # An adapter that an engine has loaded.
    from tuneloop.inference.protocol import AdapterFacts as AdapterFacts

    # An engine for models on this machine: how it serves them and answers rows.
    from tuneloop.inference.protocol import EngineKind as EngineKind

    # How an engine on this machine serves: its slots, context, threads.
    from tuneloop.inference.protocol import EngineSettings as EngineSettings

    # A target that our own engine computes in this process, with its loaded model.
    from tuneloop.inference.protocol import LoadedTarget as LoadedTarget

    # A target whose prompts become tokens here: it has a template, a context and losses.
    from tuneloop.inference.protocol import ModelTarget as ModelTarget

    # What an engine is to load: a base model, or an adapter on it.
    from tuneloop.inference.protocol import Served as Served

    # What answers requests one by one as they come, streamed.
    from tuneloop.inference.protocol import ServingEngine as ServingEngine

    # What answers rows, all given at once; it says what it can do.
    from tuneloop.inference.protocol import Target as Target

    # The whole answer of an engine to one request.
    from tuneloop.inference.protocol import complete as complete

    # Most likeliest tokens whose log probabilities a request may have.
    from tuneloop.inference.request import MOST_LOGPROBS as MOST_LOGPROBS

    # One prompt, and how it is to be answered.
    from tuneloop.inference.request import Request as Request

    # How the tokens of an answer are drawn.
    from tuneloop.inference.request import Sampling as Sampling

    # What has become known of an answer that is being written.
    from tuneloop.inference.request import Update as Update

    # Tokens as pieces of text, cut at stop strings.
    from tuneloop.inference.stream import TextStream as TextStream

    # The engines for models on this machine.
    from tuneloop.inference.targets import ENGINES as ENGINES

    # Answers that were made elsewhere, of a file.
    from tuneloop.inference.targets import PredictionsTarget as PredictionsTarget

    # The engine of a name, or the one that claims a model.
    from tuneloop.inference.targets import engine_for as engine_for

    # Whether a name is an endpoint's, a file's of predictions, or a model's here.
    from tuneloop.inference.targets import kind_of_name as kind_of_name

    # What a name means, as a target; nothing is loaded yet.
    from tuneloop.inference.targets import open_target as open_target

    # A model on this machine as a target of one engine.
    from tuneloop.inference.targets import target_of as target_of

__getattr__, __dir__ = door(__name__)
