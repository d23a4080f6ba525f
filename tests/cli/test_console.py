"""Whatever goes on, something is said of it within two seconds, and then less and less often."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import Any

import pytest

from patience import HANG
from tuneloop.cli.console import IDLE, Screen
from tuneloop.core.progress import busy


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
    with busy(screen.progress, "measuring the baselines"):
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
from tuneloop.cli.console import Screen
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
    code = "import time\nfrom tuneloop.cli.console import screen\nwith screen(False) as shown:\n    time.sleep(2.2)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    heard = time.monotonic()
    assert first.startswith(f"{IDLE}: 2 s") or first.startswith(f"{IDLE}: 1 s")
    process.stderr.read()
    assert process.wait() == 0 and time.monotonic() - heard > 0.1, "it was heard of before it ended"
