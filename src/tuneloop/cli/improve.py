"""`tuneloop improve`."""

from __future__ import annotations

import sys

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag, switch


def run(
    project: str = argument("PROJECT.yaml", "What is kept good, and how."),
    approve: str = flag("", "STEP", "Approve a step that waits for a person."),
    watch: bool = switch("Make a pass again and again, until stopped."),
    every: str = flag("15m", "TIME", "With --watch: time between two passes, as in 30s, 15m or 2h."),
    replay: bool = switch("Decide again what was decided, from the log; do nothing."),
    *,
    output: Output,
) -> None:
    """Retrain when there is a reason, and let gate and experiment decide.

    One pass, for cron; it goes on where the last one stopped. With --watch pass after pass.

    Exit status 0: nothing to do, or promoted; 1: rolled back or refused; 3: waits.
    """
    from tuneloop.cli.ab import log_line
    from tuneloop.improve.controller import command as work
    from tuneloop.improve.experiment.command import decision_log
    from tuneloop.improve.monitor.command import days_of

    found = work.load_project(project)
    if replay:
        checked, log = work.replay(found), decision_log(found.store)
        if output.json:
            print_json({"events": checked, "same": all(one.follows for one in checked), "log": log})
        else:
            for one in checked:
                print(f"{'follows' if one.follows else 'DIFFERS'}  {one.time[:16].replace('T', ' ')}  {one.what}")
            if not checked:
                print("Nothing was decided yet.")
            print(log_line(log))
        raise typer.Exit(0 if not log.fault and all(one.follows for one in checked) else 1)
    pause = 86_400 * days_of(every, "--every")
    work.check_files(found)
    if watch:
        _watch(project, pause, output.quiet)
        return
    with screen(output.quiet, "improving") as shown:
        done = work.improve(found, approve=approve)
    if output.json:
        print_json(done)
    else:
        print(done.sentence)
    waits = done.state in ("waiting", "needs approval")
    good = done.state == "idle" or done.sentence.startswith("promoted")
    raise typer.Exit(3 if waits else 0 if good else 1)


def _watch(project: str, pause: float, quiet: bool) -> None:
    """Pass after pass; lines go to stderr, where logs belong."""
    from tuneloop.improve.controller.command import watch

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    watch(project, every=pause)


def report(
    store: str = argument("[FOLDER]", "The server's folder, or its store: a file or a postgresql:// URL.", "serve"),
    *,
    output: Output,
) -> None:
    """Write a page of all that was tried: funnel, experiments, drift, costs, timeline."""
    from tuneloop.improve.report.command import write_improve_report

    with screen(output.quiet, "reading the store"):
        page, found = write_improve_report(store)
    if output.json:
        print_json({"report": str(page), **found.to_json()})
    else:
        print(f"report    {page}")


commands = {"run": run, "report": report}
usual = "run"
