"""HTTP as other rooms use it: a request at a route of theirs, its refusals, and who may send it."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # A request that gets no answer, as OpenAI's API says it.
    from tuneloop.serving.http.api_request import ApiError as ApiError

    # An error of the moment.
    from tuneloop.serving.http.api_request import unavailable as unavailable

    # One HTTP request, and the ways to answer it.
    from tuneloop.serving.http.app import Call as Call

    # Refuse what a page of another site sends through its reader's browser.
    from tuneloop.serving.http.app import refuse_foreign_pages as refuse_foreign_pages

    # Routes of a server, by what answers at each.
    from tuneloop.serving.http.app import routed as routed

__getattr__, __dir__ = door(__name__)
