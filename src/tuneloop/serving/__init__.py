"""Serving: answers by OpenAI's API in real time and in batches, with keys, limits, costs and a log of every request."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The keys of a server, as its file has them now.
    from tuneloop.serving.admission import Keyring as Keyring

    # The settings of a server: what `serve.yaml` holds.
    from tuneloop.serving.config import ServeConfig as ServeConfig

    # What the requests of a server cost.
    from tuneloop.serving.costs import costs_of as costs_of

    # What an experiment says of a request.
    from tuneloop.serving.gateway import ArmDraw as ArmDraw

    # Who sends a request.
    from tuneloop.serving.gateway import Caller as Caller

    # A server's state, and how it answers.
    from tuneloop.serving.gateway import Gateway as Gateway

    # A model as clients see it.
    from tuneloop.serving.gateway import ServedModel as ServedModel

    # A key as it is kept.
    from tuneloop.serving.keys import ApiKey as ApiKey

    # What a key may use.
    from tuneloop.serving.keys import Limits as Limits

    # Make a key.
    from tuneloop.serving.keys import add_key as add_key

    # Let requests without a key in.
    from tuneloop.serving.keys import open_keys as open_keys

    # The keys of a server, revoked ones too.
    from tuneloop.serving.keys import read_keys as read_keys

    # Refuse a budget that would never be used up, since the server has no prices.
    from tuneloop.serving.keys import refuse_unpriced_budget as refuse_unpriced_budget

    # Take a key out of use.
    from tuneloop.serving.keys import revoke_key as revoke_key

    # What an experiment wants served.
    from tuneloop.serving.models import Candidate as Candidate

    # Refuse a candidate that the server of a folder can't serve.
    from tuneloop.serving.models import check_candidate as check_candidate

    # How turns become the prompt that a task was trained on.
    from tuneloop.serving.models import prompt_of as prompt_of

    # Answer all test rows of each model and compare with its evaluation.
    from tuneloop.serving.server import check_served as check_served

    # What is printed when a server is ready.
    from tuneloop.serving.server import first_steps as first_steps

    # Serve until SIGTERM or SIGINT.
    from tuneloop.serving.server import serve as serve

    # The settings of a server, by a file or what is to be served.
    from tuneloop.serving.server import serve_config as serve_config

    # What runs next to the answers of a server: experiments, monitoring, retraining.
    from tuneloop.serving.swap import Companions as Companions

    # Have a running server serve another source.
    from tuneloop.serving.swap import deploy_to_server as deploy_to_server

    # What a running server did in each interval.
    from tuneloop.serving.top import readings_of_server as readings_of_server

__getattr__, __dir__ = door(__name__)
