"""How rows become prompts, prompts become answers, and answers become scores: one path for all targets."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # How rows become prompts: examples, a template, or turns of their own.
    from tuneloop.pipeline.answers.asking import Asking as Asking

    # A target with the task that it was trained for.
    from tuneloop.pipeline.answers.asking import TaskTarget as TaskTarget

    # A target's answers to the rows of a data set.
    from tuneloop.pipeline.answers.asking import ask as ask

    # Most tokens of an answer, by the references of a data set.
    from tuneloop.pipeline.answers.asking import longest_answer as longest_answer

    # The target of a name, with its task.
    from tuneloop.pipeline.answers.asking import open_with_task as open_with_task

    # The task that a target's folder names.
    from tuneloop.pipeline.answers.asking import task_inside as task_inside

    # The task of a finished run.
    from tuneloop.pipeline.answers.asking import task_of_run as task_of_run

    # Keep the task of a data set next to trained weights.
    from tuneloop.pipeline.answers.asking import write_task as write_task

    # A conversation with one model, or with two side by side.
    from tuneloop.pipeline.answers.chat import Chat as Chat

    # Begin a conversation.
    from tuneloop.pipeline.answers.chat import open_chat as open_chat

    # Records of a file that show which columns there are.
    from tuneloop.pipeline.answers.predictions import SAMPLE as SAMPLE

    # A target with the way in which records become its prompts.
    from tuneloop.pipeline.answers.predictions import Asker as Asker

    # Options of predictions: column, system turn, longest answer.
    from tuneloop.pipeline.answers.predictions import Options as Options

    # The rows of a file, one at a time.
    from tuneloop.pipeline.answers.predictions import each_row as each_row

    # A model's answers to records in memory.
    from tuneloop.pipeline.answers.predictions import predict as predict

    # A model's answers to the rows of a file.
    from tuneloop.pipeline.answers.predictions import predict_file as predict_file

    # Refuse a file without a readable row.
    from tuneloop.pipeline.answers.predictions import refuse_no_rows as refuse_no_rows

    # Examples for a prompt.
    from tuneloop.pipeline.answers.prompt import choose_examples as choose_examples

    # A row's turns behind examples and a template.
    from tuneloop.pipeline.answers.prompt import prompt_turns as prompt_turns

    # A system's answers, with the seconds and tokens that they took.
    from tuneloop.pipeline.answers.scoring import SystemAnswers as SystemAnswers

    # The cost of a system's answers, and of its training.
    from tuneloop.pipeline.answers.scoring import cost_of as cost_of

    # A system's answers as an evaluation.
    from tuneloop.pipeline.answers.scoring import score as score

__getattr__, __dir__ = door(__name__)
