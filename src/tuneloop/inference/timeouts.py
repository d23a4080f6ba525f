"""How long an engine is waited for, all in seconds; one table for those that serve and those that are measured."""

from typing import Final

# A connection.
CONNECT_WITHIN: Final = 5.0  # while a client waits for its answer
CONNECT_FAR_WITHIN: Final = 15.0  # for rows of a file, which no one waits for one by one
ANSWER_WITHIN: Final = 120.0  # the whole answer to a row; `--timeout` says otherwise

# An engine's life.
START_WITHIN: Final = 120.0  # the packaged model is there in three, 8 GB from a slow disk take minutes
STOP_WITHIN: Final = 30.0  # a forward pass may take so long to end
READY_PAUSE: Final = 0.5  # between two looks whether a server is ready
MODELS_WITHIN: Final = 10.0  # the list of a server's models
METRICS_WITHIN: Final = 5.0  # the metrics of a server
TOKENS_WITHIN: Final = 60.0  # the tokens of a long prompt, which a server counts

# What hangs.
HEALTHY_WITHIN: Final = 5.0  # an answer to a question about health; of a child on this machine see below
CHILD_HEALTHY_WITHIN: Final = 2.0
HANGS_AFTER: Final = 5.0  # silence, or no processor time used, after which a child is taken to hang
CHILD_ANSWERS_WITHIN: Final = 600.0  # a model that loads from a slow disk takes minutes
LOOK_EVERY: Final = 0.25  # between two looks whether a child has ended
REVIVE_PAUSE: Final = 5.0  # before it is tried again to start a child that has ended

# Further tries, see `retry`.
PAUSE: Final = 1.0  # before the first of them; doubled each time
LONGEST_PAUSE: Final = 60.0  # between two tries, where the server names no time
PATIENCE: Final = 600.0  # for a busy server that gives no answer at all
