"""The store of a server, as other rooms use it: requests, feedback and decisions, and what is erased from them."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # A store that is open: a SQLite file, or a Postgres database.
    from tuneloop.serving.store.database import Database as Database

    # It is away, locked or full.
    from tuneloop.serving.store.database import DatabaseError as DatabaseError

    # It refuses a record for what is in it, and would do so again.
    from tuneloop.serving.store.database import DataRefusedError as DataRefusedError

    # Add records in one transaction.
    from tuneloop.serving.store.database import insert as insert

    # Whether a store's place is the URL of a Postgres database.
    from tuneloop.serving.store.database import is_database_url as is_database_url

    # A database's URL without its password, which this process keeps.
    from tuneloop.serving.store.database import keep_password as keep_password

    # The place of the last record, by which a decision says what it has seen.
    from tuneloop.serving.store.database import last_place as last_place

    # A person's requests leave the store and the files next to it, or are only looked for.
    from tuneloop.serving.store.forget import forget_requests as forget_requests

    # Data sets, runs, artifacts and versions that were made of requests.
    from tuneloop.serving.store.forget import made_of_requests as made_of_requests

    # The tombstone of an erasure, by its receipt.
    from tuneloop.serving.store.forget import proof_of as proof_of

    # Data sets that were made of requests lose a person's rows.
    from tuneloop.serving.store.forget import rebuild as rebuild

    # Registered versions that have learned from rows of a data set.
    from tuneloop.serving.store.forget import versions_of as versions_of

    # The log of decisions, verified.
    from tuneloop.serving.store.store import decision_log as decision_log

    # Who met which arm of an experiment.
    from tuneloop.serving.store.store import drawn_arms as drawn_arms

    # Whether a place names a store.
    from tuneloop.serving.store.store import is_store as is_store

    # Open a store for a block.
    from tuneloop.serving.store.store import opened as opened

    # The pseudonym of a user whose name comes from elsewhere.
    from tuneloop.serving.store.store import pseudonym_of_user as pseudonym_of_user

    # Decisions, in the order of the log.
    from tuneloop.serving.store.store import read_decisions as read_decisions

    # Feedback, in the order of its ids.
    from tuneloop.serving.store.store import read_feedback as read_feedback

    # Requests, in the order of their arrival.
    from tuneloop.serving.store.store import read_requests as read_requests

    # Refuse to decide by a log that was changed.
    from tuneloop.serving.store.store import refuse_rewritten as refuse_rewritten

    # The folder of the files next to a store.
    from tuneloop.serving.store.store import store_folder as store_folder

    # A store's place as it is shown.
    from tuneloop.serving.store.store import store_name as store_name

    # The key of a store's pseudonyms.
    from tuneloop.serving.store.store import users_key as users_key

    # A record as a JSON object.
    from tuneloop.serving.store.writer import json_of as json_of

__getattr__, __dir__ = door(__name__)
