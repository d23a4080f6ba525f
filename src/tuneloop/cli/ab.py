"""`tuneloop ab`: experiments with a candidate on live traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from tuneloop.cli.console import plain_table, print_json, screen, terminal
from tuneloop.cli.endpoint import ConnectionOptions
from tuneloop.cli.parameters import Output, argument, given
from tuneloop.core.flag import flag
from tuneloop.core.units import counted, verb
from tuneloop.improve.experiment.config import ExperimentOptions, ExperimentPlanOptions

if TYPE_CHECKING:
    from tuneloop.improve.experiment.log import ExperimentState
    from tuneloop.improve.experiment.record import PlannedPower
    from tuneloop.serving.store.chain import DecisionLog

STORE = flag("serve", "FOLDER", "The server's folder, or its store: a file or a postgresql:// URL.")
EXIT = {"promote": 0, "roll back": 1, "futility": 1, "continue": 3}


def plan(*, options: ExperimentPlanOptions, output: Output) -> None:
    """Say what an experiment with this traffic can show, before anything is spent."""
    from tuneloop.improve.experiment.plan import plan_experiment

    found = plan_experiment(given(options))
    if output.json:
        print_json(found)
        return

    console = terminal(highlight=False)
    for line in found.summary:
        console.print(line, markup=False)
    console.print("\nSimulated experiments that have ended by then", _power_table(found.power), sep="\n")
    table = plain_table("denser measure", "a day", "units", "days", "what to do")
    for way in found.denser:
        units = "-" if way.units is None else f"{way.units:,}"
        days = "-" if way.days is None else f"{way.days:,}"
        table.add_row(way.name, f"{way.units_per_day:,.0f}", units, days, way.how)
    console.print("\nUntil half of the candidates with that effect are promoted by another measure", table, sep="\n")


def _power_table(rows: list[PlannedPower]) -> Any:
    """A line for each true effect and a column for each time."""
    days = sorted({row.days for row in rows})
    table = plain_table("true effect", *(f"day {day:,}" for day in days))
    for effect in sorted({row.effect for row in rows}):
        of = {row.days: row for row in rows if row.effect == effect}
        if effect <= 0:
            table.add_row(f"{100 * effect:+.3g} points, rolled back", *(f"{of[day].rolled_back:.1%}" for day in days))
        table.add_row(f"{100 * effect:+.3g} points, promoted", *(f"{of[day].promoted:.1%}" for day in days))
    return table


def start(
    name: str = argument("NAME", "Name of the experiment."),
    store: str = STORE,
    *,
    options: ExperimentOptions,
    output: Output,
) -> None:
    """Register an experiment and begin it: who meets the candidate, what decides, what must not get worse."""
    from tuneloop.improve.experiment.command import counts_users, not_served, registration_file
    from tuneloop.improve.experiment.command import start as begin

    state = begin(store, name, given(options))
    file, note = registration_file(store, name), not_served(store, state.design.model)
    if output.json:
        print_json({"experiment": name, "registration": state.registration, "path": str(file), "share": state.share, "note": note, "design": state.design})  # fmt: skip
        return
    copies = f"in shadow mode, until the candidate has answered {counted(state.design.shadow_votes, 'copy')} that nobody sees"
    begins = copies if not state.share else f"with {state.share:.0%} of new users"
    print(f"started   {name}: {state.design.candidate} against {state.design.champion}")
    print(f"begins    {begins}")
    print(f"registered {file} ({state.registration[:19]}...)")
    if note:
        print(f"note      {note}: tuneloop ab stop {name}, and start another one with --model")
    if not counts_users(store):
        print(
            "note      no key has the right `users`, so all users of a key count as one: tuneloop keys add NAME --rights users"
        )
    print(f"next      tuneloop ab check {name} --store {store}, as often as you like")


def check(
    name: str = argument("[NAME]", "Name of the experiment; default: the one that goes on.", ""),
    store: str = STORE,
    *,
    output: Output,
) -> None:
    """Decide on an experiment now: promote, roll back, continue or stop for futility.

    In shadow mode, pairs of answers that need no judge get their verdicts first (`tuneloop ab judge`).

    Exit status 0: promote; 1: roll back or futility; 3: continue.
    """
    from tuneloop.improve.experiment.command import check as decide
    from tuneloop.improve.experiment.command import find, read_experiments
    from tuneloop.improve.experiment.shadow import judge_copies

    found = find(read_experiments(store), name, store)
    if found.in_shadow_mode:
        judge_copies(store, found.design.name)  # what needs no judge
    state, verdict = decide(store, found.design.name)
    if output.json:
        print_json({"experiment": state.design.name, **verdict.to_json()})
    else:
        print(f"{verdict.outcome}: {verdict.sentence}")
    raise typer.Exit(EXIT[verdict.outcome])


def show(
    name: str = argument("[NAME]", "Name of the experiment; default: all.", ""), store: str = STORE, *, output: Output
) -> None:
    """Show experiments, and every decision on one of them."""
    from tuneloop.improve.experiment.command import find, read_experiments

    found = read_experiments(store)
    states = [find(found, name, store)] if name else list(found.values())
    if output.json:
        print_json({"experiments": [{"name": one.design.name, **_as_json(one)} for one in states]})
        return
    for one in states:
        where = one.ended or (f"{one.share:.0%} of new users" if one.share else "shadow mode")
        print(
            f"{one.design.name}: {where}, {one.design.candidate} against {one.design.champion}, since {one.started[:16].replace('T', ' ')}"
        )
        for verdict in one.verdicts if name else one.verdicts[-1:]:
            print(f"  {verdict.at[:16].replace('T', ' ')}  {verdict.outcome}: {verdict.sentence}")
        if one.stopped:
            print(f"  {one.stopped[:16].replace('T', ' ')}  stopped by hand: {one.why or 'no reason was given'}")
    if not states:
        print("There is no experiment yet: `tuneloop ab plan` says what one could show.")


def stop(
    name: str = argument("[NAME]", "Name of the experiment; default: the one that goes on.", ""),
    store: str = STORE,
    why: str = flag("", "TEXT", "The reason, for the log."),
    *,
    output: Output,
) -> None:
    """End an experiment by hand; the champion answers everybody again."""
    from tuneloop.improve.experiment.command import stop as end

    state = end(store, name, why)
    if output.json:
        print_json({"experiment": state.design.name, **_as_json(state)})
    else:
        print(f"stopped   {state.design.name}: the champion answers everybody")


def replay(
    name: str = argument("[NAME]", "Name of the experiment; default: the one that goes on.", ""),
    store: str = STORE,
    *,
    output: Output,
) -> None:
    """Make every decision again from the log, and say whether the same comes out, and whether the log is as it was written.

    Exit status 1: one differs, or the log was changed.
    """
    from tuneloop.improve.experiment.command import decision_log
    from tuneloop.improve.experiment.command import replay as again

    found, log = again(store, name), decision_log(store)
    if output.json:
        print_json({"decisions": found, "same": all(one.same for one in found), "log": log})
    else:
        for one in found:
            word = "same" if one.same else "DIFFERS: its inputs were changed or erased" if one.follows else "DIFFERS"
            print(f"{word}  {one.logged.at[:16].replace('T', ' ')}  {one.logged.outcome}: {one.logged.sentence}")
            if not one.same:
                print(f"      now  {one.again.outcome}: {one.again.sentence}")
        print(log_line(log))
    if log.fault or not all(one.same for one in found):
        raise typer.Exit(1)


def judge(
    name: str = argument("[NAME]", "Name of the experiment; default: the one that goes on.", ""),
    store: str = STORE,
    judge: str = flag("", "MODEL|URL", "A model that compares the answers: a local one, or an endpoint's URL."),
    judge_model: str = flag("", "NAME", "The judge, as the endpoint names it."),
    judge_prompt: str = flag("", "FILE", "Your own prompt, in the form of judge.yaml."),
    *,
    connection: ConnectionOptions,
    output: Output,
) -> None:
    """Judge the answers that a candidate gave unseen, in shadow mode, against those that users got.

    Equal answers tie. Where one of both failed, or people have said what is right, no judge is asked either. Without
    --judge only these are judged, as `tuneloop ab check` does by itself.
    """
    from tuneloop.improve.experiment.shadow import judge_copies
    from tuneloop.pipeline.judge import Judge

    found = None
    if judge:
        remote = judge.startswith(("http://", "https://"))
        if remote and not judge_model:
            raise typer.BadParameter("name the endpoint's model with --judge-model")
        endpoint = connection.endpoint(judge, judge_model) if remote else None
        found = Judge(judge_model if remote else judge, endpoint, judge_prompt)
    with screen(output.quiet, "judging") as shown:
        done = judge_copies(store, name, judge=found)
    if output.json:
        print_json(done)
        return
    plain = ("equal", "invalid")
    votes = ", ".join(f"{number} {by}" if by in plain else f"{number} by {by}" for by, number in done.votes.items())
    print(
        f"{done.experiment}: {counted(done.pairs, 'pair')}, {votes or 'no verdict'}; mean {done.mean:+.3f} (1: the candidate is better)"
    )
    for note in done.notes:
        print(f"  {note}")
    if done.open:
        print(
            f"  {counted(done.open, 'pair')} {verb(done.open, 'has', 'have')} no verdict: --judge MODEL compares their answers"
        )


def log_line(log: DecisionLog) -> str:
    """What is said of a log that was verified."""
    if log.fault:
        return f"CHANGED  the log of decisions: {log.fault}"
    return f"unbroken  the log of {log.decisions:,} decisions, which ends in {log.head}"


def _as_json(state: ExperimentState) -> dict[str, Any]:
    return {
        "design": state.design, "registration": state.registration, "started": state.started, "share": state.share,
        "ended": state.ended, "stopped": state.stopped, "why": state.why, "decisions": state.verdicts,
    }  # fmt: skip


commands = {"plan": plan, "start": start, "check": check, "show": show, "judge": judge, "stop": stop, "replay": replay}
