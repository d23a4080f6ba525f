"""What each command prints with `--json`, and the exit statuses: for the schema, the reference and the tests."""

from __future__ import annotations

from typing import Any

EXITS = {"pass": 0, "fail": 1, "inconclusive": 3}  # of a gate, or of a line for CI
# Status -> what it means; no command ends with another one.
EXIT_STATUSES: dict[int, str] = {
    0: "done",
    1: "done, and the answer is no: don't tune, it does not fit, worse, changed, a check at `error`, rows with errors",
    2: "bad input, a bad setting or a missing piece; with `--json` the answer is `error`",
    3: "inconclusive: not enough evidence or requests, or it waits for something",
    130: "interrupted (SIGINT, Ctrl-C); the same command does the rest",
    141: "whoever read the output has left (SIGPIPE)",
    143: "ended (SIGTERM); training has saved a checkpoint, and the same command does the rest",
}

# Command -> its answers: `@NAME` is a record of `tuneloop schema --record`, the others are keys with their types. `?`:
# it may be null, `~`: it may be missing. Several answers: by the options.
ANSWERS: dict[str, tuple[str, ...]] = {
    "advise": ("@advice html:text?",),
    "plan": (
        "@plan",
        "version:count file:text runs:list memory:object time:object",
        "model:text context:count concurrency:count served:list assumptions:list",
    ),
    "plan prices": ("fetched:object? prices:object",),
    "prepare": ("@dataset path:text",),
    "data check": ("dataset:text path:text level:text checks:list",),
    "data diff": ("identical:flag a:object b:object same:count added:object removed:object changed:object",),
    "data push": ("repo:text files:object url:text sent:flag card:text",),
    "data export": ("path:text tool:text rows:count metrics:list run:text",),
    "data forget": (
        "matched rows also_in sources removed:count descendants:list",
        "requests:count feedback:count lines:count erased:flag receipt:text? descendants:list rebuilt:object",
        "proved:flag erased:object?",
    ),
    "demo": ("path:text adapter:text report:text dataset:object? plan:object? run:object? eval:object?",),
    "run init": ("recipe:text format:text reason:text",),
    "run": (
        "path:text adapter:text report:text dataset:object? plan:object? run:object? eval:object?",
        "folder:text on:text plan:object run:object~",
    ),
    "train": ("@run path:text", "ready:flag plan:object? shown:list problems:list"),
    "train sweep": ("@sweep path:text",),
    "train prompt": ("path:text search:object eval:object",),
    "merge": ("path:text deployment:object?",),
    "distill": ("@distillation path:text", "teacher:text student:text dataset:text rows:count hours:number usd:number"),
    "route fit": ("@router path:text",),
    "route eval": ("@router path:text",),
    "route cascade": ("@cascade path:text",),
    "evaluate": ("@evaluation path:text",),
    "compare": (
        "@evaluation path:text ci:object~",
        "place:text tool:text metric:text items:count clusters:count unrelated:number alike:number items_for:object",
        "path:text adapter:text report:text dataset:object? plan:object? run:object? eval:object?",
        "table:text format:text",
        "judge:text checks:list",
    ),
    "predict": ("target:text kind:text base:text? out:text? rows:count errors:count seconds:number predictions:list~",),
    "predict chat": ("target:text against:text? turns:list",),
    "review": (
        "folder:text mode:text items:count reviewed:count votes:count reviewers:object agreement:object",
        "path:text rows:count left_out:object prepare:text",
    ),
    "review draw": ("folder:text rows:count strata:object",),
    "review votes": ("added:count votes:count",),
    "gate": ("@gate path:text?", "path:text"),
    "export": ("@artifact path:text",),
    "models list": ("registry:text models:list",),
    "models register": ("name:text version:text aliases:list lineage:object",),
    "models promote": ("name:text aliases:object event:object",),
    "models rollback": ("name:text aliases:object event:object",),
    "models push": ("repo:text files:object url:text sent:flag",),
    "models verify": ("path:text intact:flag id:text files:count changed:list missing:list added:list signature:text",),
    "models reproduce": ("@reproduction",),
    "deploy": ("@deploy folder:text", "name:text source:text running:flag swapped:flag? why:text"),
    "serve": ("address:text models:list folder:text", "models:list"),
    "serve keys": ("id:text name:text created:text revoked limits:object key:text~", "keys:list", "open:flag"),
    "serve top": ("address:text requests_per_second:number tokens_per_second:number tiers:object batches:list",),
    "serve costs": ("since:text? hours:number utilisation:number usd_per_hour:number? total:object by:object",),
    "batch": ("status:text total:count completed:count failed:count out:text errors:text",),
    "import": (
        "source:text format:text records:count requests:count feedback:count known:count repeated:count left_out:object"
        " incomplete:object without:list since:text until:text rejects:text",
    ),
    "monitor": ("@monitor",),
    "collect": ("@collected path:text",),
    "collect requests": ("out:text written:count failed:count without_text:count without_consent:count",),
    "collect add": ("id:text new:flag feedback:object",),
    "collect import": ("added:count known:count refused:list",),
    "collect export": ("path:text lines:count",),
    "collect show": ("kinds:list requests:count rated:count orphans:list",),
    "ab plan": ("@ab-plan",),
    "ab start": ("experiment:text registration:text path:text share:number note:text design:object",),
    "ab check": ("@verdict experiment:text",),
    "ab show": ("experiments:list",),
    "ab sample": ("requests:list users:count checked:count",),
    "ab judge": ("experiment:text pairs:count votes:object mean:number? open:count notes:list",),
    "ab stop": ("experiment:text design:object started:text ended:text decisions:list",),
    "ab replay": ("decisions:list same:flag log:object",),
    "improve": ("state:text sentence:text", "events:list same:flag log:object"),
    "improve report": ("@improvement report:text",),
    "migrate openai": ("@migration path:text?",),
    "migrate freeze": ("@evaluation path:text", "path:text?"),
    "doctor": ("ok:flag findings:list", "ok:flag checks:list"),
    "schema": ("",),
    "serve ui": ("address:text read_only:flag", "path:text pages:count"),
    "serve mcp": ("tools:list roots:list allow_write:flag",),
}
SAME = {"improve run": "improve", "models": "models list"}  # commands that do the same as another one
TYPES = {
    "text": "string", "number": "number", "count": "integer", "flag": "boolean", "list": "array", "object": "object",
}  # fmt: skip
ERROR: dict[str, Any] = {
    "type": "object",
    "description": "Exit status 2: what is wrong, where, and what to do next.",
    "properties": {
        "error": {
            "type": "object",
            "properties": {key: {"type": "string"} for key in ("what", "where", "next")},
            "required": ["what", "where", "next"],
        }
    },
    "required": ["error"],
}
