"""`tuneloop improve`."""

from __future__ import annotations

from functools import partial

from tuneloop.cli.console import Result, minute, print_live
from tuneloop.cli.parameters import STORE_ARGUMENT, argument, output, screen
from tuneloop.core.flag import flag, switch
from tuneloop.core.ui import reporting


def command(
    project: str = argument("PROJECT.yaml", "What is kept good, and how."),
    approve: str = flag("", "STEP", "Approve a step that waits for a person."),
    watch: bool = switch("Make a pass again and again, until stopped."),
    every: str = flag("15m", "TIME", "With --watch: time between two passes, as in 30s, 15m or 2h."),
    replay: bool = switch("Decide again what was decided, from the log; do nothing."),
) -> Result | None:
    """Retrain when there is a reason, and let gate and experiment decide.

    One pass, for cron; it continues where the last one stopped. With --watch pass after pass.

    Exit status 0: nothing to do or to train on, or promoted; 1: rolled back or refused; 3: waits.
    """
    from tuneloop.improve.controller import check_files, improve, load_project
    from tuneloop.improve.controller import replay as decide_again
    from tuneloop.improve.controller import watch as watch_project
    from tuneloop.improve.monitor import days_of
    from tuneloop.serving.store import decision_log

    plan = load_project(project)
    if replay:
        events, log = decide_again(plan), decision_log(plan.store)
        same = all(event.follows for event in events)
        labels = {True: "follows", False: "DIFFERS"}
        lines = [f"{labels[event.follows]}  {minute(event.time)}  {event.what}" for event in events]
        lines += [] if events else ["Nothing was decided yet."]
        record = {"events": events, "same": same, "log": log}
        return Result(record, [*lines, log.line], int(bool(log.fault) or not same))
    pause = 86_400 * days_of(every, "--every")
    check_files(plan)
    if watch:
        with reporting(say=None if output().quiet else partial(print_live, err=True)):
            watch_project(project, every=pause)
        return None
    with screen("improving"):
        step = improve(plan, approve=approve)
    waits = step.state in ("waiting", "needs approval")
    good = step.state == "idle" or step.sentence.startswith(("promoted", "nothing new"))
    return Result(step, [step.sentence], 3 if waits else 0 if good else 1)


def report(store: str = STORE_ARGUMENT) -> Result:
    """Write a page of all that was tried: funnel, experiments, drift, costs, timeline."""
    from tuneloop.improve.report import write_improve_report

    with screen("reading the store"):
        page, summary = write_improve_report(store)
    return Result({"report": str(page), **summary.to_json()}, [f"report    {page}"])


commands = {"run": command, "report": report}
