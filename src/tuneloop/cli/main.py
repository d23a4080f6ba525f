"""Entry point: the commands, and what becomes of errors.

Only typer is imported here and in the command files, so that help and usage errors answer at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import typer

from tuneloop.cli import (
    advise,
    chat,
    check,
    compare,
    diff,
    doctor,
    evaluate,
    export,
    forget,
    gate,
    init,
    plan,
    predict,
    prepare,
    report,
    review,
    run,
    schema,
    train,
)
from tuneloop.cli.console import report_error
from tuneloop.core.errors import UserError

app = typer.Typer(
    name="tuneloop",
    help="From a file of examples to a tuned, measured Llama 3: prepare, baselines, plan, train, evaluate, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(run.command)
app.command("init")(init.command)
app.command("prepare")(prepare.command)
app.command("check")(check.command)
app.command("diff")(diff.command)
app.command("forget")(forget.command)
app.command("advise")(advise.command)
app.command("plan")(plan.command)
app.command("train")(train.command)
app.command("evaluate")(evaluate.command)
app.command("compare")(compare.command)
app.command("predict")(predict.command)
app.command("chat")(chat.command)
app.command("review")(review.command)
app.command("gate")(gate.command)
app.command("export")(export.command)
app.command("report")(report.command)
app.command("doctor")(doctor.command)
app.command("schema")(schema.command)


def _version(value: bool) -> None:
    if value:
        from tuneloop import __version__

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
    """Leave by an exception when SIGTERM comes, so that the user is told; training ends its step first (`notice_sigterm`)."""
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
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _ended_by_signal():
            status = app(args=arguments, prog_name="tuneloop", standalone_mode=False) or 0
        if status == 130:  # typer has turned the interrupt into a status
            raise KeyboardInterrupt
        sys.stdout.flush()  # a full disk or a reader that left shows here, and not when Python shuts down
        return int(status)
    except _Terminated as ended:
        print("\nEnded (SIGTERM). The same command goes on from here.", file=sys.stderr)
        return int(ended.code or 0)
    except SystemExit as exit_:
        if isinstance(exit_.__context__, BrokenPipeError):
            return 0  # the reader has seen enough, as in `tuneloop schema | head`
        return exit_.code if isinstance(exit_.code, int) else int(bool(exit_.code))
    except _UsageError as error:
        if not arguments:
            error.show()  # type: ignore[attr-defined]  # the help: no command is no mistake to explain
            return 2
        return report_error(_as_user_error(error), arguments)
    except BaseException as error:
        return report_error(error, arguments)


# typer carries its own copy of click in some versions: this is the class in all of them.
_UsageError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "UsageError")


def _as_user_error(error: Exception) -> UserError:
    """A wrong command line as what, where and next."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "tuneloop"
    step = f"{command} --help"
    option = str(getattr(error, "option_name", "") or "").lstrip("-").replace("-", "_")
    if option and context and any(parameter.name == "settings" for parameter in context.command.params):
        step = _as_setting(option) + step
    return UserError(error.format_message(), next_step=step)  # type: ignore[attr-defined]


def _as_setting(option: str) -> str:
    """ "write max_minutes=VALUE; " where an option that does not exist is a setting of the recipe."""
    from tuneloop.core.files import config_keys
    from tuneloop.workflows.recipe import Recipe

    keys = [key for key in config_keys(Recipe) if key.replace(".", "_") == option or key.split(".")[-1] == option]
    key = min(keys, key=lambda key: key.count("."), default="")
    return f"that is a setting: write {key}=VALUE, without dashes; or " if key else ""


def entry() -> None:
    """The console script."""
    sys.exit(main())
