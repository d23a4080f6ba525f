"""Two later versions of the store's tables, which no release has."""

from __future__ import annotations

from typing import Any

from tuneloop.serving.store.database import Database
from tuneloop.serving.store.migrations import STEPS, VERSION, StoreSteps, store_step

COLUMN = store_step(
    VERSION + 1,
    "the region of a request",
    "ALTER TABLE requests ADD COLUMN region TEXT; UPDATE requests SET region = 'eu';",
)
SPLIT = store_step(
    VERSION + 2,
    "texts in a table of their own",
    """
CREATE TABLE texts (request TEXT PRIMARY KEY, prompt TEXT NOT NULL, tools TEXT, completion TEXT);
INSERT INTO texts SELECT id, prompt, tools, completion FROM requests;
ALTER TABLE requests DROP COLUMN prompt;
ALTER TABLE requests DROP COLUMN tools;
ALTER TABLE requests DROP COLUMN completion;
ALTER TABLE requests RENAME COLUMN ttft_ms TO first_token_ms;
""",
)
LATER: StoreSteps = (*STEPS, COLUMN, SPLIT)


def rows(store: Database) -> list[Any]:
    """All requests with their texts, feedback, decisions and sums of costs, in a form of a release or in the last."""
    if store.version() <= VERSION:
        requests = "SELECT id, prompt, completion, ttft_ms, usd, place FROM requests"
    else:
        requests = """SELECT requests.id, texts.prompt, texts.completion, first_token_ms, usd, place FROM requests
            JOIN texts ON texts.request = requests.id"""
    queries = (f"{requests} ORDER BY 1", "SELECT * FROM feedback ORDER BY 1", "SELECT * FROM decisions ORDER BY 1",
               "SELECT * FROM places", "SELECT * FROM costs ORDER BY 1, 2, 3, 4")  # fmt: skip
    return [store.execute(query).fetchall() for query in queries]
