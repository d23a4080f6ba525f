"""Experiments of a server's store, for its gateway: who meets the candidate, and whose requests are copied to it.

The store is the only link: `tuneloop ab` adds events to it, the server reads them again every second, so that a start,
a step of the ramp and a stop take effect without a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now
from tuneloop.core.ui import bound_say
from tuneloop.improve.experiment.state import EVENTS, ExperimentState, experiments_of
from tuneloop.improve.experiment.statistics import CANDIDATE, assign, may_be_drawn_again
from tuneloop.serving import ArmDraw, Candidate, Gateway
from tuneloop.serving.store import Database, DatabaseError, drawn_arms, is_store, opened, read_decisions

EVERY = 1.0  # seconds between two looks into the store


@dataclass
class Arms:
    """Who meets what, for a server. A unit keeps its arm. When its window is over and the share has risen, a champion's
    is drawn again, so that users who return do not stop the ramp; a candidate's stays, with a propensity of 1."""

    state: ExperimentState  # of the experiment
    arms: dict[str, tuple[str, float, str]] = field(default_factory=dict)  # unit -> arm, propensity, time of its draw

    def arm_of(self, unit: str, now: str = "") -> tuple[str, float] | None:
        """Arm and propensity of a unit, which are stored with its request; None where no experiment runs.

        Args:
            unit: from `experiment.unit_of`.
            now: ISO 8601 in UTC; the present time where empty.
        """
        design, share = self.state.design, self.state.share
        if self.state.ended or not share:
            return None
        now = now or utc_now()
        arm, propensity, drawn = self.arms.get(unit, ("", 0.0, ""))
        if not arm or (propensity < share and may_be_drawn_again(design, drawn, now)):
            chance = 1.0 if arm == CANDIDATE else share
            arm = arm if arm == CANDIDATE else assign(design, unit, share, again=bool(arm))
            self.arms[unit] = arm, chance, now
        return self.arms[unit][:2]


@dataclass
class Experiments:
    """The experiments that run, as a server follows them."""

    place: str  # the store's
    say: Callable[[str], None] = field(default_factory=bound_say)
    running: dict[str, ExperimentState] = field(default_factory=dict)  # state of those that run, by their model
    arms: dict[str, Arms] = field(default_factory=dict)  # who meets what, by the model
    _gateway: Gateway | None = None
    _seen: int = -1  # number of the last decision that was read
    _reported: dict[str, str] = field(default_factory=dict)
    _store: Database | None = None
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # until the end of `followed_by`

    def refresh(self) -> bool:
        """Read the store again where events came; returns whether anything has changed.

        Raises DatabaseError: it can't be read at present. Raises UserError: it is no store of this version.
        """
        if self._store is None:
            if not is_store(self.place):
                return False
            self._store = self._open.enter_context(opened(self.place, create=True))
        last = self._store.execute("SELECT MAX(number) FROM decisions").fetchone()[0] or 0
        if last == self._seen:
            return False
        experiments = experiments_of(read_decisions(self._store, where=EVENTS))
        running = {state.design.model: state for state in experiments.values() if not state.ended}
        for model, state in running.items():
            before = self.running.get(model)
            same = before is not None and before.registration == state.registration
            arms = self.arms[model].arms if same else drawn_arms(self._store, model, state.started)
            self.arms[model] = Arms(state, arms)
        for model in set(self.arms) - set(running):
            del self.arms[model]
        changed, self.running, self._seen = running != self.running, running, last
        self._attach()
        return changed

    def _attach(self) -> None:
        """Let the gateway draw arms and copy requests while experiments run; else no request passes here."""
        if self._gateway is not None:
            self._gateway.draw, self._gateway.shadow = (self.draw, self.shadow) if self.running else (None, None)

    def candidates(self) -> dict[str, Candidate]:
        with contextlib.suppress(DatabaseError):
            self.refresh()
        return self.wanted

    @property
    def wanted(self) -> dict[str, Candidate]:
        """What the experiments want served, by their names, as last read."""
        return {state.design.name: Candidate(model, state.design.candidate) for model, state in self.running.items()}

    def draw(self, model: str, unit: str, request: str) -> ArmDraw | None:
        """The arm of a request; see `gateway.Draw`. A user who comes while the candidate is not served has none."""
        arms = self.arms.get(model)
        if arms is None or self._gateway is None:
            return None
        name = arms.state.design.name
        served = name in self._gateway.candidates
        if not served and unit not in arms.arms:
            return None
        arm = arms.arm_of(unit or request)
        if not unit:
            arms.arms.pop(request, None)  # no one comes again under it
        if arm is None:
            return None
        return ArmDraw(*arm, served=name if arm[0] == CANDIDATE else "")

    def shadow(self, model: str) -> str:
        """The experiment whose candidate answers copies of a model's requests; empty: none."""
        state = self.running.get(model)
        return state.design.name if state is not None and state.in_shadow_mode else ""

    @contextlib.asynccontextmanager
    async def followed_by(self, gateway: Gateway) -> AsyncIterator[None]:
        """Keep a gateway up to date for the time of a block."""
        self._gateway = gateway
        self._attach()
        self._report()
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._open.close()
            self._store = None

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            with contextlib.suppress(DatabaseError, UserError):  # a file that is locked can be read a second later
                if await asyncio.to_thread(self.refresh):
                    self._report()

    def _report(self) -> None:
        assert self._gateway is not None
        now = {}
        for model, state in self.running.items():
            name = state.design.name
            share = "copies, which no one sees" if not state.share else f"{state.share:.0%} of new users"
            ready = name in self._gateway.candidates
            now[name] = f"{model}: the candidate gets {share}" if ready else f"{model}: the candidate is not loaded"
        for name, line in now.items():
            if self._reported.get(name) != line:
                self.say(f"experiment {name}, {line}")
        for name in set(self._reported) - set(now):
            self.say(f"experiment {name} is over; the champion answers all")
        self._reported = now
