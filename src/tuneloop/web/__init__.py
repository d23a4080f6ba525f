"""The pages: runs, data, models, traffic and decisions in a browser."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The pages as routes of a running server, for its owner.
    from tuneloop.web.mount import ui_routes as ui_routes

    # Address, folders and rights of `tuneloop ui`.
    from tuneloop.web.serve import WebConfig as WebConfig

    # The pages of runs and data as files, without a server.
    from tuneloop.web.serve import export_to as export_to

    # What the pages show, from folders and stores.
    from tuneloop.web.serve import make_sources as make_sources

    # The server of `tuneloop ui`, until it is stopped.
    from tuneloop.web.serve import serve_pages as serve_pages

__getattr__, __dir__ = door(__name__)
