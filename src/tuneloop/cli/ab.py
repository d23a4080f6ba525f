"""`tuneloop ab`: experiments with a candidate on live traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tuneloop.cli.console import Result, minute
from tuneloop.cli.endpoint import ConnectionOptions, JudgeChoice
from tuneloop.cli.parameters import STORE, argument, given, screen
from tuneloop.core.flag import flag
from tuneloop.core.terminal import plain_table
from tuneloop.core.units import counted, verb
from tuneloop.improve.experiment import MISSING, ExperimentOptions, ExperimentPlanOptions

if TYPE_CHECKING:
    from tuneloop.improve.experiment import ExperimentPlan, ExperimentState

NAME = argument("[NAME]", "Name of the experiment; default: the one that runs.", "")
EXIT = {"promote": 0, "roll back": 1, "futility": 1, "continue": 3}


def plan(*, options: ExperimentPlanOptions) -> Result:
    """Say what an experiment with this traffic can show, before anything is spent."""
    from tuneloop.improve.experiment import plan_experiment

    forecast = plan_experiment(given(options))
    return Result(forecast, partial(_print_plan, forecast))


def _print_plan(forecast: ExperimentPlan, console: Any) -> None:
    for line in forecast.summary:
        console.print(line)
    times = sorted({row.days for row in forecast.power})
    table = plain_table("true effect", *(f"day {day:,}" for day in times))
    for effect in sorted({row.effect for row in forecast.power}):
        of = {row.days: row for row in forecast.power if row.effect == effect}
        if effect <= 0:
            ended = [f"{of[day].rolled_back + of[day].futile:.1%}" for day in times]
            table.add_row(f"{100 * effect:+.3g} points, rolled back or futility", *ended)
        table.add_row(f"{100 * effect:+.3g} points, promoted", *(f"{of[day].promoted:.1%}" for day in times))
    console.print("\nSimulated experiments that have ended by then", table, sep="\n")
    table = plain_table("ramp, %", "days", "users who meet a bad candidate")
    for ramp in forecast.ramps:
        table.add_row(ramp.ramp, "-" if ramp.days_50 is None else f"{ramp.days_50:,}", f"{ramp.harmed:,}")
    bad = f"{200 * forecast.effect:.3g} points worse"
    console.print(f"\nUntil half of the candidates with that effect are promoted; bad: {bad}", table, sep="\n")


def start(
    name: str = argument("NAME", "Name of the experiment."), store: str = STORE, *, options: ExperimentOptions
) -> Result:
    """Register an experiment and begin it: who meets the candidate, what decides, what must not get worse.

    Where the server runs, this waits until it has loaded the candidate. If the server can't, the experiment is stopped.
    """
    from tuneloop.improve.experiment import counts_users, not_served, registration_file, wait_for_candidate
    from tuneloop.improve.experiment import start as begin

    state = begin(store, name, given(options))
    with screen("waiting for the server to load the candidate"):
        loaded = wait_for_candidate(store, name)
    file, note = registration_file(store, name), not_served(store, state.design.model)
    design = state.design
    copies = f"in shadow mode, until the candidate has answered {counted(design.shadow_votes, 'copy')} that no one sees"
    lines = [
        f"started   {name}: {design.candidate} against {design.champion}",
        f"begins    {copies if not state.share else f'with {state.share:.0%} of new users'}",
        f"registered {file} ({state.registration[:19]}...)",
    ]
    if design.sample:
        checks = f"{design.sample:.0%} of users, to be checked by people or a judge: tuneloop ab sample {name}"
        lines.append(f"sample    {checks}")
    if design.sample or design.missing == "any":
        lines.append("promotes  nothing by who votes; `tuneloop ab plan --sample SHARE` says how many days checks take")
    else:
        lines.append(f"assumes   {MISSING[design.missing]}")
    if note:
        lines.append(f"note      {note}: tuneloop ab stop {name}, and start another one with --model")
    if not counts_users(store):
        users = "no key has the right `users`, so all users of a key count as one"
        lines.append(f"note      {users}: tuneloop keys add NAME --rights users")
    if loaded:
        lines.append("loaded    the server has the candidate next to the champion")
    lines.append(f"next      tuneloop ab check {name} --store {store}, as often as you like")
    record = {"experiment": name, "registration": state.registration, "path": str(file), "share": state.share}
    return Result({**record, "loaded": loaded, "note": note, "design": design}, lines)


def check(name: str = NAME, store: str = STORE) -> Result:
    """Decide on an experiment now: promote, roll back, continue or stop for futility.

    In shadow mode, pairs of answers that need no judge get their verdicts first (`tuneloop ab judge`).

    Exit status 0: promote; 1: roll back or futility; 3: continue.
    """
    from tuneloop.improve.experiment import check as decide
    from tuneloop.improve.experiment import find, judge_copies, read_experiments

    before = find(read_experiments(store), name, store)
    if before.in_shadow_mode:
        judge_copies(store, before.design.name)  # what needs no judge
    state, verdict = decide(store, before.design.name)
    record = {"experiment": state.design.name, **verdict.to_json(), "note": _note(store, before)}
    lines = [f"{verdict.outcome}: {verdict.sentence}", *([f"note: {record['note']}"] if record["note"] else [])]
    return Result(record, lines, EXIT[verdict.outcome])


def _note(store: str, state: ExperimentState) -> str:
    """What to know of an experiment whose candidate the server does not serve; empty: it does, or says nothing."""
    from tuneloop.improve.experiment import left_out

    reason = "" if state.ended else left_out(store, state.design.name)
    step = f"tuneloop ab stop {state.design.name} --store {store}"
    return f"no one meets the candidate, the server can't serve it: {reason} ({step})" if reason else ""


def show(name: str = argument("[NAME]", "Name of the experiment; default: all.", ""), store: str = STORE) -> Result:
    """Show experiments, and every decision on one of them."""
    from tuneloop.improve.experiment import find, read_experiments

    experiments = read_experiments(store)
    states = [find(experiments, name, store)] if name else list(experiments.values())
    record = {"experiments": [{"name": state.design.name, **_as_json(state)} for state in states]}
    notes = [f"note: {note}" for state in states if (note := _note(store, state))]
    return Result(record, [*_lines(states, every=bool(name)), *notes])


def _lines(states: Sequence[ExperimentState], *, every: bool) -> Iterator[str]:
    for state in states:
        where = state.ended or (f"{state.share:.0%} of new users" if state.share else "shadow mode")
        pair = f"{state.design.candidate} against {state.design.champion}"
        yield f"{state.design.name}: {where}, {pair}, since {minute(state.started)}"
        for verdict in state.verdicts if every else state.verdicts[-1:]:
            yield f"  {minute(verdict.at)}  {verdict.outcome}: {verdict.sentence}"
        if state.stopped:
            yield f"  {minute(state.stopped)}  stopped by hand: {state.why or 'no reason was given'}"
    if not states:
        yield "There is no experiment yet: `tuneloop ab plan` says what one could show."


def stop(name: str = NAME, store: str = STORE, why: str = flag("", "TEXT", "The reason, for the log.")) -> Result:
    """End an experiment by hand; the champion answers all users again."""
    from tuneloop.improve.experiment import stop as end

    state = end(store, name, why)
    line = f"stopped   {state.design.name}: the champion answers all users"
    return Result({"experiment": state.design.name, **_as_json(state)}, [line])


def replay(name: str = NAME, store: str = STORE) -> Result:
    """Make every decision again from the log, and say whether each is the same, and the log as it was written.

    Exit status 1: one differs, or the log was changed.
    """
    from tuneloop.improve.experiment import replay as again
    from tuneloop.serving.store import decision_log

    decisions, log = again(store, name), decision_log(store)
    same = all(entry.same for entry in decisions)
    lines = []
    for decision in decisions:
        word = (
            "same" if decision.same else "DIFFERS: its inputs were changed or erased" if decision.follows else "DIFFERS"
        )
        lines.append(f"{word}  {minute(decision.logged.at)}  {decision.logged.outcome}: {decision.logged.sentence}")
        if not decision.same:
            lines.append(f"      now  {decision.again.outcome}: {decision.again.sentence}")
    record = {"decisions": decisions, "same": same, "log": log}
    return Result(record, [*lines, log.line], int(bool(log.fault) or not same))


def judge(name: str = NAME, store: str = STORE, *, choice: JudgeChoice, connection: ConnectionOptions) -> Result:
    """Judge the answers that a candidate gave unseen, in shadow mode, against those that users got.

    Equal answers tie. Where one of both failed, or people have said what is right, no judge is needed either. Without
    --judge only these are judged, as `tuneloop ab check` does, too.
    """
    from tuneloop.improve.experiment import judge_copies

    model = choice.chosen(connection)
    with screen("judging"):
        verdicts = judge_copies(store, name, judge=model)
    plain = ("equal", "invalid")
    votes = ", ".join(f"{number} {by}" if by in plain else f"{number} by {by}" for by, number in verdicts.votes.items())
    mean = f"mean {verdicts.mean:+.3f} (1: the candidate is better)"
    lines = [f"{verdicts.experiment}: {counted(verdicts.pairs, 'pair')}, {votes or 'no verdict'}; {mean}"]
    lines += [f"  {note}" for note in verdicts.notes]
    if verdicts.open:
        pairs = f"{counted(verdicts.open, 'pair')} {verb(verdicts.open, 'has', 'have')}"
        lines.append(f"  {pairs} no verdict: --judge MODEL compares their answers")
    return Result(verdicts, lines)


def sample(
    name: str = NAME, store: str = STORE, open_only: bool = flag(False, "", "Only those without a check.", "--open")
) -> Result:
    """List the requests of the random sample (`ab start --sample`), without their arms, for those who check them.

    Say of each how good the answer is: `tuneloop collect add REQUEST --kind checked --value true`.
    """
    from tuneloop.improve.experiment import sample_of

    requests = [asked_request for asked_request in sample_of(store, name) if not (open_only and asked_request.checked)]
    table = plain_table("request", "user", "checked", "question")
    for request in requests:
        table.add_row(
            request.request, request.user, "yes" if request.checked else "no", " ".join(request.question.split())[:60]
        )
    users, done = (
        len({asked_request.user for asked_request in requests}),
        sum(asked_request.checked for asked_request in requests),
    )
    line = f"{counted(len(requests), 'request')} of {counted(users, 'user')} in the sample, {done:,} checked"

    def show_them(console: Any) -> None:
        console.print(line, table, sep="\n")

    return Result({"requests": requests, "users": users, "checked": done}, show_them)


def _as_json(state: ExperimentState) -> dict[str, Any]:
    names = ("design", "registration", "started", "share", "ended", "stopped", "why")
    return {**{name: getattr(state, name) for name in names}, "decisions": state.verdicts}


commands = {
    "plan": plan, "start": start, "check": check, "show": show, "sample": sample, "judge": judge, "stop": stop,
    "replay": replay,
}  # fmt: skip
