"""Conversations to token ids, and answers to text, tool calls and reasoning."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Token ids of a long conversation, computed in a process that can be ended.
    from tuneloop.models.chat.long_prompts import ids_of_long as ids_of_long

    # Whether a conversation is too long to be rendered in this process.
    from tuneloop.models.chat.long_prompts import is_long as is_long

    # Most rows that a proof renders.
    from tuneloop.models.chat.proof import MOST_ROWS as MOST_ROWS

    # The first row that an export renders otherwise than its training.
    from tuneloop.models.chat.proof import first_difference as first_difference

    # All checks of a template on rows.
    from tuneloop.models.chat.proof import prove_template as prove_template

    # Refuse a template that would spoil a training.
    from tuneloop.models.chat.proof import refuse_wrong_template as refuse_wrong_template

    # The tags around reasoning.
    from tuneloop.models.chat.reasoning import THINK as THINK

    # Splits reasoning and answer while they are written.
    from tuneloop.models.chat.reasoning import ReasoningStream as ReasoningStream

    # Whether a text has the end of a block of reasoning and not its beginning.
    from tuneloop.models.chat.reasoning import is_headless as is_headless

    # The reasoning that a server gives apart from the answer.
    from tuneloop.models.chat.reasoning import reasoning_of as reasoning_of

    # Reasoning and answer of a text.
    from tuneloop.models.chat.reasoning import split_reasoning as split_reasoning

    # Reasoning as it is written in front of an answer.
    from tuneloop.models.chat.reasoning import with_tags as with_tags

    # A conversation as token ids, with the weight of each in the loss.
    from tuneloop.models.chat.template import Rendered as Rendered

    # A tokenizer with its chat template.
    from tuneloop.models.chat.template import Template as Template

    # The template can't render a conversation.
    from tuneloop.models.chat.template import TemplateError as TemplateError

    # The tokenizer and chat template of a folder.
    from tuneloop.models.chat.template import load_template as load_template

    # A chat template as other programs read it.
    from tuneloop.models.chat.template import plain_source as plain_source

    # The tokenizer in a folder.
    from tuneloop.models.chat.template import read_tokenizer as read_tokenizer

    # What the beginning of a template sets about reasoning.
    from tuneloop.models.chat.template import sets_of as sets_of

    # A tokenizer with another chat template.
    from tuneloop.models.chat.template import with_template as with_template

    # From which character on a text may become calls.
    from tuneloop.models.chat.tool_calls import may_be_calls as may_be_calls

    # What an answer says before its calls, and these.
    from tuneloop.models.chat.tool_calls import read_calls as read_calls

__getattr__, __dir__ = door(__name__)
