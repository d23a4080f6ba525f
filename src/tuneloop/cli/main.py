"""Entry point: the commands, and what becomes of errors.

Only typer is imported here and in the command files, so that help and usage errors answer at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import typer
import typer.core
import typer.main

from tuneloop import __version__
from tuneloop.cli.console import report_error, visible_output
from tuneloop.cli.parameters import Command, expanded
from tuneloop.cli.unread import drop_unread_output
from tuneloop.core.errors import UserError
from tuneloop.core.parent import end_with_parent
from tuneloop.core.python_file import code_of_a_command

# The commands by stage of the life cycle. Each is `command` in the module of its name, which is imported when it is needed.
COMMANDS: dict[str, dict[str, str]] = {
    "Decide and plan": {
        "advise": "Say whether to fine-tune at all, how, and when it pays off.",
        "plan": "Predict the memory, hours and dollars of training, for any GPU or for this machine.",
    },
    "Data": {
        "prepare": "Turn files of any format into train, validation and test splits.",
        "check": "Check a prepared data set for problems that spoil training or evaluation.",
        "diff": "Show what changed between two prepared data sets.",
        "forget": "Remove a person's rows from a data set, and list all that was made from it.",
    },
    "Train": {
        "init": "Write a recipe for a file of examples.",
        "run": "Do all stages in one go: prepare, baselines, plan, train, evaluate, report.",
        "train": "Train an adapter, or all weights, on a prepared data set.",
        "sweep": "Search over settings with several values, and evaluate the winner once.",
    },
    "Evaluate": {
        "evaluate": "Measure a run, a model, an endpoint or a file of answers on any rows.",
        "compare": "Compare evaluations of the same rows, each with the first one.",
        "predict": "Answer the rows of a file.",
        "chat": "Ask a model questions, one line at a time.",
        "review": "Let people judge answers on a local page without knowing whose they are.",
        "report": "Write the report page of a run or evaluation again.",
    },
    "Release": {
        "gate": "Decide whether a candidate may replace the model in use.",
        "export": "Export a run as a folder that other tools can load, with a model card.",
        "register": "Register an artifact as the newest version of a model.",
        "promote": "Make a version of a model the one in use, if the gate allows it.",
        "rollback": "Make the previous version the one in use again.",
        "models": "List registered models, their versions and figures.",
        "deploy": "Make the project that serves an artifact on a host, with its price.",
        "push": "Upload an artifact to the Hugging Face hub.",
        "reproduce": "Train a run again and say whether the same came out.",
        "verify": "Check that an artifact's files are as they were exported, and who signed them.",
    },
    "Serve": {
        "serve": "Answer requests by OpenAI's API until stopped.",
        "batch": "Answer a file of requests or rows, or a folder of texts, without a server.",
        "top": "Show what a running server does: requests, queue, times, tokens, batches, dollars.",
        "costs": "Say what served requests cost, by model, key and tier.",
        "requests": "Write served requests as a log that prepare reads.",
        "keys": "Make, list and revoke the API keys of a server.",
    },
    "Improve": {
        "feedback": "Store, import, export and show what people say of answers.",
        "monitor": "Say whether production has changed, in which requests and words, and what to do.",
        "collect": "Turn requests with feedback into training data, and keep some users for the test.",
        "improve": "Retrain when there is a reason, and let gate and experiment decide.",
        "ab": "Try a candidate on live traffic, and decide by what its users do.",
    },
    "Combine": {
        "merge": "Merge adapters of one base into one adapter, in the folder of a run.",
        "distill": "Train a small model on a larger one's answers, and say whether it was worth it.",
        "route": "Fit and measure a router that sends each request to a model.",
    },
    "Set up": {
        "doctor": "Check this machine: packages, model, memory, disk.",
        "schema": "Print the JSON Schema of a recipe or of a file's record, or a table of the recipe's keys.",
    },
}


class _WithUsual(typer.core.TyperGroup):
    """The commands of a group; `tuneloop improve PROJECT.yaml` means the usual one, `tuneloop improve run PROJECT.yaml`."""

    usual = ""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read the arguments, with the usual command before those that name none."""
        if self.usual and args and args[0] not in self.commands and args[0] != "--help":
            args = [self.usual, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table of commands, each with its whole first sentence."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, " ".join((each.help or "").split("\n\n")[0].split())) for name, each in self.commands.items()]
            )


class _Commands(typer.core.TyperGroup):
    """The commands of `COMMANDS`; help lists them by stage, and only the one that is called is imported."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = dict.fromkeys(
            name for stage in COMMANDS.values() for name in stage
        )  # None: not yet imported

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, by stage."""
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name in self.commands and self.commands[cmd_name] is None:
            module = import_module(f"tuneloop.cli.{cmd_name}")
            several = getattr(module, "commands", None)  # `ab plan`, `ab start`: a function for each
            line = next(stage[cmd_name] for stage in COMMANDS.values() if cmd_name in stage)
            one = typer.Typer(add_completion=False, rich_markup_mode=None)
            usual = getattr(module, "usual", "")  # what is meant where no command of the group is named
            kind = type("_Group", (_WithUsual,), {"usual": usual})
            group = typer.Typer(
                name=cmd_name, help=line, no_args_is_help=True, add_completion=False, rich_markup_mode=None, cls=kind
            )
            for name, function in (several or {cmd_name: module.command}).items():
                (group if several else one).command(name, cls=Command)(expanded(function))
            group.callback()(lambda: None)  # without it, a group of one command would be that command
            self.commands[cmd_name] = typer.main.get_command(group if several else one)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table of commands."""
        for stage, lines in COMMANDS.items():
            with formatter.section(stage):
                formatter.write_dl([(f"{name:<8}", line) for name, line in lines.items()])


app = typer.Typer(
    name="tuneloop",
    cls=_Commands,
    help="Take Llama 3 from a file of examples to a fine-tuned and measured model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(value: bool) -> None:
    if value:
        print(f"tuneloop {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


class _Terminated(SystemExit):
    """The process was asked to end."""


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Leave by an exception when SIGTERM comes, so that the user reads why; training ends its step first (`notice_sigterm`)."""
    own = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() != own:  # a worker process that has inherited this
            os._exit(128 + number)
        raise _Terminated(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit status: 0 done, 1 the answer is no, 2 bad input, 130 interrupted."""
    with visible_output():
        return _main(sys.argv[1:] if arguments is None else arguments)


def _main(arguments: list[str]) -> int:
    try:
        with _ended_by_signal(), code_of_a_command(arguments):
            status = app(args=arguments, prog_name="tuneloop", standalone_mode=False) or 0
        if status == 130:  # typer has turned the interrupt into a status
            raise KeyboardInterrupt
        sys.stdout.flush()  # a full disk shows here, and not when Python shuts down
        return int(status)
    except _Terminated as ended:
        print("\nEnded (SIGTERM). What was finished is kept; the same command does the rest.", file=sys.stderr)
        return int(ended.code or 0)
    except SystemExit as exit_:
        if isinstance(
            exit_.__context__, BrokenPipeError
        ):  # typer's end for it; our output has none, so it is another pipe
            return report_error(exit_.__context__, arguments)
        return exit_.code if isinstance(exit_.code, int) else int(bool(exit_.code))
    except _UsageError as error:
        if not arguments:
            error.show()  # type: ignore[attr-defined]  # the help: no command is no mistake to explain
            return 2
        return report_error(_as_user_error(error, arguments), arguments)
    except BaseException as error:
        return report_error(error, arguments)


# typer carries its own copy of click in some versions: this is the class in all of them.
_UsageError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "UsageError")


def _as_user_error(error: Exception, arguments: list[str]) -> UserError:
    context = getattr(error, "ctx", None)  # not there where an option lacks its value
    named = arguments[0] if arguments and any(arguments[0] in stage for stage in COMMANDS.values()) else ""
    command = context.command_path if context else f"tuneloop {named}".rstrip()
    step = f"{command} --help"
    option = str(getattr(error, "option_name", "") or "").lstrip("-").replace("-", "_")
    if option and context and any(parameter.name == "settings" for parameter in context.command.params):
        step = _as_setting(option) + step
    extra = re.fullmatch(r"Got unexpected extra argument\(s\) \((\S+)\)", error.format_message())  # type: ignore[attr-defined]
    if extra and context and any(parameter.name == "folder" for parameter in context.command.params):
        step = f"{command} --folder {extra[1]}; or {step}"
    return UserError(error.format_message(), next_step=step)  # type: ignore[attr-defined]


def _as_setting(option: str) -> str:
    """ "write max_minutes=VALUE; " where an option that does not exist is a setting of the recipe."""
    from tuneloop.core.files import config_keys
    from tuneloop.recipe import Recipe

    keys = [key for key in config_keys(Recipe) if key.replace(".", "_") == option or key.split(".")[-1] == option]
    key = min(keys, key=lambda key: key.count("."), default="")
    return f"that is a setting: write {key}=VALUE, without dashes; or " if key else ""


def entry() -> None:
    """The console script."""
    end_with_parent()
    drop_unread_output()
    sys.exit(main())
