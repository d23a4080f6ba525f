"""`tuneloop data`: what is done with a prepared data set."""

from tuneloop.cli import check, diff, forget

commands = {"check": check, "diff": diff, "forget": forget}
