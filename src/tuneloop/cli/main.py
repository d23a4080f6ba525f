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

from tuneloop.cli.console import drop_unread_output, report_error
from tuneloop.core.errors import UserError
from tuneloop.core.parent import end_with_parent
from tuneloop.core.python_file import code_of_a_command
from tuneloop.core.terminal import visible_output
from tuneloop.core.version import __version__

# What help lists: what a newcomer types first, then the rest by stage of the life cycle. Each is a module of that name,
# which is imported when it is called, or a command of a group (`GROUPS`).
COMMANDS: dict[str, dict[str, str]] = {
    "Start here": {
        "demo": "Do the whole job on packaged data, in minutes.",
        "init": "Write a recipe for a file of examples.",
        "run": "Do all stages in one go, from the rows to the report.",
        "predict": "Answer the rows of a file.",
        "chat": "Ask a model questions, one line at a time.",
        "serve": "Answer requests by OpenAI's API.",
        "ui": "Show runs, data, models and servers on a local page, live.",
    },
    "Decide and prepare": {
        "advise": "Say whether to fine-tune at all, how, and when it pays off.",
        "plan": "Predict the memory, hours and dollars of training; list prices.",
        "prepare": "Turn files of any format into train, validation and test splits.",
        "data": "Check, diff, export and push prepared data sets, forget a person's rows.",
    },
    "Train and combine": {
        "prompt": "Search the best prompt for a model, and keep it like a run.",
        "train": "Train on a prepared data set; sweep over settings.",
        "merge": "Merge adapters of one base into one, in the folder of a run.",
        "distill": "Train a small model on a large one's answers; was it worth it?",
        "route": "Send each request to the model that answers it best.",
    },
    "Evaluate and release": {
        "evaluate": "Measure a run, a model, an endpoint or a file of answers.",
        "compare": "Compare evaluations of the same rows, each with the first one.",
        "review": "Let people judge answers blind, of tests or of production.",
        "gate": "Decide whether a candidate may replace the model in use.",
        "export": "Export a run as a folder that other tools can load.",
        "models": "List, register, promote, push, verify and reproduce models.",
        "deploy": "Make the project that serves an artifact on a host.",
    },
    "Serve": {
        "batch": "Answer a file of requests or rows, or a folder of texts.",
        "keys": "Make, list and revoke the API keys of a server.",
        "top": "Show what a running server does: requests, queue, times, tokens, batches, dollars.",
        "costs": "Say what served requests cost, by model, key and tier.",
        "mcp": "Serve coding agents by the Model Context Protocol.",
    },
    "Improve": {
        "import": "Bring traces of other tools, with their feedback, into a store.",
        "monitor": "Say whether production has changed, where, and what to do.",
        "collect": "Turn requests and feedback into training data.",
        "ab": "Try a candidate on live traffic, and decide by its users.",
        "improve": "Retrain when there is a reason; gate and experiment decide.",
    },
    "Set up": {
        "migrate": "Leave a hosted fine-tune: copy it, keep its answers as baseline.",
        "doctor": "Check this machine: packages, model, memory, disk.",
        "schema": "Print the JSON Schema of a recipe, record or answer, or keys.",
    },
}

# Commands that also run without the name of their group.
GROUPS = {
    "init": "run", "prompt": "train", "sweep": "train", "chat": "predict", "keys": "serve", "top": "serve",
    "costs": "serve", "mcp": "serve", "ui": "serve",
}  # fmt: skip


class _Commands(typer.core.TyperGroup):
    """The commands of `COMMANDS`; help lists them by stage, and only the one that is called is imported."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = dict.fromkeys(
            name for stage in COMMANDS.values() for name in stage if name not in GROUPS
        )  # None: not imported

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, by stage."""
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command or group of that name, or None."""
        if cmd_name in self.commands and self.commands[cmd_name] is None:
            from tuneloop.cli.parameters import built

            line = next(stage[cmd_name] for stage in COMMANDS.values() if cmd_name in stage)
            self.commands[cmd_name] = built(cmd_name, import_module(f"tuneloop.cli.{cmd_name}"), line)
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called: of a group its usual one, where none is named."""
        if args[0] in GROUPS:
            return args[0], self.get_command(ctx, GROUPS[args[0]]).commands[args[0]], args[1:]
        name, command, rest = super().resolve_command(ctx, args)
        usual = getattr(command, "usual", None)
        if usual is not None and not (rest and rest[0] in getattr(command, "commands", ())):
            command = usual
        return name, command, rest

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
    """The process got SIGTERM."""


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Leave by an exception when SIGTERM comes, so that the user reads why; training ends its step first."""
    process = os.getpid()

    def end(number: int, frame: object) -> None:
        if os.getpid() != process:  # a worker process that has inherited this
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
        if isinstance(exit_.__context__, BrokenPipeError):  # typer's end for it; of another pipe than our output
            return report_error(exit_.__context__, arguments)
        return exit_.code if isinstance(exit_.code, int) else int(bool(exit_.code))
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]  # the help: no command is no mistake to explain
            return 2
        return report_error(_as_user_error(error, arguments), arguments)
    except BaseException as error:
        return report_error(error, arguments)


# typer carries its own copy of click in some versions: this is the class in all of them.
_UsageError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "UsageError")


def _as_user_error(error: Exception, arguments: list[str]) -> UserError:
    context = getattr(error, "ctx", None)  # not there where an option lacks its value
    name = arguments[0] if arguments and any(arguments[0] in stage for stage in COMMANDS.values()) else ""
    command = context.command_path if context else f"tuneloop {name}".rstrip()
    step = f"{command} --help"
    option = str(getattr(error, "option_name", "") or "").lstrip("-").replace("-", "_")
    parameters = {parameter.name for parameter in context.command.params} if context else set()
    if option and "settings" in parameters:
        step = _as_setting(option, name) + step
    message = error.format_message()  # type: ignore[attr-defined]
    extra = re.fullmatch(r"Got unexpected extra argument\(s\) \((\S+)\)", message)
    if extra and "folder" in parameters:
        step = f"{command} --folder {extra[1]}; or {step}"
    return UserError(message, next_step=step)


def _as_setting(option: str, command: str) -> str:
    """ "write max_minutes=VALUE; " where an option that does not exist is a setting of the recipe: one of the command's
    own section before others of that name."""
    from tuneloop.core.files import config_keys
    from tuneloop.recipe import Recipe

    keys = [key for key in config_keys(Recipe) if key.replace(".", "_") == option or key.split(".")[-1] == option]
    section = "data" if command == "prepare" else command
    key = min(keys, key=lambda key: (not key.startswith(f"{section}."), key.count(".")), default="")
    return f"that is a setting: write {key}=VALUE, without dashes; or " if key else ""


def entry() -> None:
    """The console script."""
    end_with_parent()
    drop_unread_output()
    sys.exit(main())
