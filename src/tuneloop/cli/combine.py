"""`tuneloop combine`: one model of several."""

from tuneloop.cli import distill, merge, route

commands = {"merge": merge, "distill": distill, "route": route}
