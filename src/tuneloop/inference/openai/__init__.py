"""Servers of OpenAI's API as engines that serve."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Log probabilities of a token that a search through labels reads, where a server allows it.
    from tuneloop.inference.openai.label_search import MOST_BRANCHES as MOST_BRANCHES

    # A server behind the serving protocol.
    from tuneloop.inference.openai.serving import EndpointEngine as EndpointEngine

    # How a server is used: its URL, key, tokenizer.
    from tuneloop.inference.openai.serving import EndpointSettings as EndpointSettings

    # The one model that servers list.
    from tuneloop.inference.openai.serving import only_model as only_model

__getattr__, __dir__ = door(__name__)
