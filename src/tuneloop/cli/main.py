"""Entry point: the commands, and what becomes of errors.

Only typer is imported here and in the command files, so that help and usage errors answer at once.
"""

from __future__ import annotations

import sys

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


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit status: 0 done, 1 the answer is no, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(args=arguments, prog_name="tuneloop", standalone_mode=False) or 0
        if status == 130:  # typer has turned the interrupt into a status
            raise KeyboardInterrupt
        sys.stdout.flush()  # a full disk or a reader that left shows here, and not when Python shuts down
        return int(status)
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
    return UserError(error.format_message(), next_step=f"{command} --help")  # type: ignore[attr-defined]


def entry() -> None:
    """The console script."""
    sys.exit(main())
