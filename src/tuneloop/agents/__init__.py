"""The tools that a coding agent calls over MCP, and the jobs that they start."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # A command that runs on its own, in a folder with its log.
    from tuneloop.agents.jobs import Job as Job

    # How a job is doing: its state, its last lines, its result.
    from tuneloop.agents.jobs import job_status as job_status

    # Whether a job's process is still there.
    from tuneloop.agents.jobs import lives as lives

    # A command started on its own.
    from tuneloop.agents.jobs import start_job as start_job

    # The MCP server with all tools.
    from tuneloop.agents.server import make_server as make_server

__getattr__, __dir__ = door(__name__)
