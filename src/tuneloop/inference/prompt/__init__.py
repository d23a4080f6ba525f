"""Prompts that are kept and served like what was trained."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The engine of a base with adapters and prompts on it.
    from tuneloop.inference.prompt.serving import engine_of as engine_of

    # An engine of a base with the prompts among what it is to serve.
    from tuneloop.inference.prompt.serving import with_prompts as with_prompts

    # A row's own turns as its prompt.
    from tuneloop.inference.prompt.turns import AS_IT_IS as AS_IT_IS

    # Rows that are found again by a text near to theirs.
    from tuneloop.inference.prompt.turns import ExampleIndex as ExampleIndex

    # A prompt of a folder, ready to be put around conversations.
    from tuneloop.inference.prompt.turns import KeptPrompt as KeptPrompt

    # What takes the place of a row's own turns.
    from tuneloop.inference.prompt.turns import PromptTemplate as PromptTemplate

    # An example's conversation, as a prompt shows it.
    from tuneloop.inference.prompt.turns import example_turns as example_turns

    # A whole prompt: system turn, examples, the conversation.
    from tuneloop.inference.prompt.turns import prompt_turns as prompt_turns

__getattr__, __dir__ = door(__name__)
