"""Whatever goes on, something is said of it within two seconds, and then less and less often."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from patience import HANG
from places import ROOT
from tuneloop.cli.console import print_json
from tuneloop.core.terminal import IDLE, Screen, plain_table, terminal, visible, visible_output
from tuneloop.core.ui import busy, reporting, stage


class Clock:
    """A clock that goes when it is told to; each quarter of a second the screen may speak, as its thread does."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def go(self, screen: Screen, seconds: float) -> None:
        for _ in range(round(4 * seconds)):
            self.now += 0.25
            screen.beat()


class Bars:
    """The part of rich's `Progress` that a screen uses."""

    def __init__(self) -> None:
        self.shown: dict[int, dict[str, Any]] = {}
        self.made = 0

    def add_task(self, name: str, **more: Any) -> int:
        self.made += 1
        self.shown[self.made] = {"name": name, **more}
        return self.made

    def update(self, task: int, **more: Any) -> None:
        self.shown[task] |= more

    def remove_task(self, task: int) -> None:
        del self.shown[task]

    @property
    def names(self) -> list[str]:
        return [task["name"] for task in self.shown.values()]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def screen(clock: Clock) -> Screen:
    return Screen(quiet=False, clock=clock)


def spoken(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_slow_system_is_told_of_within_two_seconds_of_its_beginning(
    screen: Screen, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    screen.progress("few-shot (12)", 0, 75)
    clock.go(screen, 1.25)
    assert spoken(capsys) == []
    clock.go(screen, 0.5)
    assert spoken(capsys) == ["few-shot (12): 0/75  2 s"]


def test_a_long_task_is_told_of_at_once_then_every_ten_seconds_and_later_every_thirty(
    screen: Screen, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    screen.progress("zero-shot", 0, 75)
    times = []
    for _ in range(2400):
        clock.go(screen, 0.25)
        times += [clock.now] * len(spoken(capsys))
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert times[0] <= 2.0
    assert max(gap for gap, at in zip(gaps, times, strict=True) if at <= 60) <= 10.0
    assert sorted(gaps[1:]) == gaps[1:] and gaps[-1] == 30.0
    assert len(times) < 35, "a log is not flooded"


def test_many_short_tasks_are_not_silent_together(
    screen: Screen, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        screen.progress(f"part {number}", 0, 1)
        clock.go(screen, 1.0)
        screen.progress(f"part {number}", 1, 1)
    assert spoken(capsys) == ["part 1", "part 2: 1 s", "part 4", "part 5: 1 s", "part 7"]


def test_time_that_no_task_tells_of_is_not_silent(
    screen: Screen, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    screen.progress("tuned", 1, 2)
    screen.progress("tuned", 2, 2)
    clock.go(screen, 1.75)
    screen.say("evaluate  tuned")
    clock.go(screen, 1.75)
    assert spoken(capsys) == [f"{IDLE}: 2 s", "evaluate  tuned", f"{IDLE}: 2 s"]


def test_between_two_parts_of_a_stage_the_stage_is_named(
    screen: Screen, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with reporting(screen.say, screen.progress), busy("measuring the baselines"):
        screen.progress("zero-shot", 1, 2)
        screen.progress("zero-shot", 2, 2)
        clock.go(screen, 1.75)
    assert spoken(capsys) == ["measuring the baselines: 2 s"]


def test_a_command_says_what_it_does_while_no_task_does(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    clock.go(Screen(quiet=False, clock=clock, doing="exporting"), 1.75)
    assert spoken(capsys) == ["exporting: 2 s"]


def test_rate_and_time_left_count_from_where_the_task_began(
    screen: Screen, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    screen.progress("training", 100, 120)  # a resumed run
    clock.now = 10.0
    screen.progress("training", 110, 120, loss=1.5)
    assert spoken(capsys) == ["training: 110/120  1.0/s  10 s left  loss 1.500"]


def test_something_of_one_part_says_how_long_it_takes(
    screen: Screen, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    screen.progress("loading the model", 0, 1)
    clock.go(screen, 13.0)
    assert spoken(capsys) == ["loading the model: 2 s", "loading the model: 12 s"]


def test_a_terminal_has_a_bar_at_any_time(screen: Screen, clock: Clock) -> None:
    bars = screen.bars = Bars()
    clock.go(screen, 1.75)
    assert bars.names == [IDLE]
    screen.progress("tuned", 0, 2)
    assert bars.names == ["tuned"]
    screen.progress("tuned", 2, 2)
    clock.go(screen, 1.0)
    assert bars.names == []
    clock.go(screen, 1.0)
    assert bars.names == [IDLE]


def test_quiet_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = Screen(quiet=True, clock=clock)
    quiet.progress("tuned", 0, 2)
    quiet.say("line")
    clock.go(quiet, 1.0)
    assert spoken(capsys) == []


def test_processes_forked_while_something_is_said_can_speak() -> None:
    """Children of a process whose thread writes all the time end, and what they say arrives."""
    code = """
import os, sys, threading
from tuneloop.core.terminal import Screen
shown = Screen(False)
over = threading.Event()
def speak():
    while not over.is_set():
        shown.say("x" * 2000)
threading.Thread(target=speak, daemon=True).start()
for number in range(40):
    child = os.fork()
    if not child:
        shown.say(f"child {number}")
        sys.stderr.flush()
        os._exit(0)
    os.waitpid(child, 0)
over.set()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0
    assert {f"child {number}" for number in range(40)} <= set(re.findall(r"child \d+", done.stderr))


def test_a_command_that_works_without_a_word_is_heard_of() -> None:
    """In a real process: nothing but `time.sleep` in it, and stderr is no terminal."""
    code = "import time\nfrom tuneloop.core.terminal import screen\nwith screen(False) as shown:\n    time.sleep(2.2)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    heard = time.monotonic()
    assert first.startswith(f"{IDLE}: 2 s") or first.startswith(f"{IDLE}: 1 s")
    process.stderr.read()
    assert process.wait() == 0 and time.monotonic() - heard > 0.1, "it was heard of before it ended"


# --- control characters ----------------------------------------------------------------------------

# Escape sequences of both kinds, a title, bidi overrides, a carriage return that hides, a bell, half of a pair.
HOSTILE = "a\x1b[2Jb\x9b31mc\x1b]0;title\x07d\u202ee\u2066f\rg\x00h\x7fi\ud800j\u2028k"
SHOWN = r"a\u001b[2Jb\u009b31mc\u001b]0;title\u0007d\u202ee\u2066f\u000dg\u0000h\u007fi\ud800j\u2028k"  # still one line


def test_what_is_printed_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with visible_output():
        print(HOSTILE, HOSTILE, sep="\t")
        sys.stderr.writelines([HOSTILE, "\r\n"])
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}\t{SHOWN}\n" and err == f"{SHOWN}\r\n"
    assert not isinstance(sys.stdout, type(visible_output))


def test_json_with_control_characters_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    value = {HOSTILE: [HOSTILE, "\\" + HOSTILE, "plain é 🎈"]}
    with visible_output():
        print_json(value)
    out = capsys.readouterr().out
    assert visible(out) == out and "é 🎈" in out
    assert json.loads(out) == value


def test_tables_and_bars_show_them_too_and_keep_their_own_colours() -> None:
    stream = io.StringIO()
    console = terminal(file=stream, force_terminal=True, color_system="standard", width=300)
    table = plain_table("name")
    table.add_row(HOSTILE.replace("\ud800", ""))
    console.print(table)
    console.print("plain", style="red")
    text = stream.getvalue()
    assert r"a\u001b[2Jb\u009b31m" in text and "\x9b" not in text and "\u202e" not in text
    assert "\x1b[31mplain" in text


def test_no_table_of_a_command_goes_around_it() -> None:
    around = [
        path.name
        for path in (ROOT / "src" / "tuneloop" / "cli").glob("*.py")
        if re.search(r"(?<!class Shown\()\bConsole\(", path.read_text()) and path.name != "terminal.py"
    ]
    assert around == []


@pytest.mark.parametrize(
    "arguments", [["compare", HOSTILE], ["models", "--registry", HOSTILE], [HOSTILE], ["models", "verify", HOSTILE]]
)
def test_errors_quote_names_without_control_characters(arguments: list[str], cli: Any) -> None:
    arguments = [argument.replace("\x00", "") for argument in arguments]
    for more in ([], ["--json"]):
        done = cli(*arguments, *more)
        assert done.returncode == 2
        assert visible(done.stdout + done.stderr) == done.stdout + done.stderr
        if more and done.stdout:
            json.loads(done.stdout)


def test_nothing_gets_to_a_real_terminal(tmp_path: Path, cli_environment: dict[str, str]) -> None:
    """A prepared file with hostile texts and a hostile name, its commands on a pseudo-terminal."""
    name = "rows\x1b[31m\u202e.jsonl"
    hostile = HOSTILE.replace("\ud800", "")
    rows = [{"text": f"{hostile} {i} good words here", "label": f"{hostile}{i % 2}"} for i in range(20)]
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken \x1b[2J\n")
    for arguments in (["prepare", name, "-o", "data"], ["data", "check", "data"], ["data", "diff", "data", "data"]):
        seen = on_a_terminal(arguments, tmp_path, cli_environment)
        assert "\x9b" not in seen and "\u202e" not in seen and "\x07" not in seen
        assert r"\u001b[2K" not in seen  # rich's own
        assert "\x1b[2J" not in seen and "\x1b]" not in seen and "\x1b[31m\u202e" not in seen


def on_a_terminal(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tuneloop", *arguments], stdin=follower, stdout=follower, stderr=follower, cwd=folder,
        env={**environment, "TERM": "xterm"},
    )  # fmt: skip
    os.close(follower)
    seen = bytearray()
    with contextlib.suppress(OSError):  # what a closed terminal answers
        while piece := os.read(leader, 65536):
            seen += piece
    process.wait()
    os.close(leader)
    return seen.decode("utf-8", "replace")


def test_a_brief_screen_has_a_line_a_stage_and_of_the_others_what_warns(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    brief = Screen(quiet=False, clock=clock, brief=True)
    with reporting(brief.say, brief.progress, brief.stage), stage("train", "training the model") as tell:
        brief.say("train     computes with 2 threads from here\n          and more of it")
        brief.say("train     warn: one label only")
        brief.say("          which continues it")
        brief.say("baseline  zero-shot: 0.1")
        brief.say("          which continues that")
        brief.say("waiting   another process is at work")
        tell("96 steps; " + 40 * "long words ")
        clock.go(brief, 20.0)
    lines = spoken(capsys)
    assert [line[:10] for line in lines] == ["train     ", "          ", "waiting   ", "✓ train   "]
    assert "96 steps; long words" in lines[-1] and len(lines[-1]) <= 110 and lines[-1].endswith(" s")


def test_a_brief_screen_is_quiet_where_nothing_is_to_be_said(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    brief = Screen(quiet=True, clock=clock, brief=True)
    with reporting(brief.say, brief.progress, brief.stage), stage("train", "training the model") as tell:
        tell("96 steps")
    assert spoken(capsys) == []
