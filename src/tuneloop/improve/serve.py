"""`tuneloop serve`: a server together with its experiments, its monitor and its retraining."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from tuneloop.improve.controller.process import check_improve, improving
from tuneloop.improve.experiment.live import Experiments
from tuneloop.improve.monitor.schedule import monitored
from tuneloop.serving import server
from tuneloop.serving.companions import Companions
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Gateway


@contextlib.asynccontextmanager
async def _running(config: ServeConfig, gateway: Gateway) -> AsyncIterator[None]:
    async with monitored(config, gateway), improving(config):
        yield


COMPANIONS = Companions(Experiments, check_improve, _running)


def serve(config: ServeConfig, *, ready: Callable[[str, Gateway], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, see `serving.server.serve`."""
    server.serve(config, COMPANIONS, ready=ready)
