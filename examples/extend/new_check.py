"""A check of your own: prompts that are written in capitals. One function with a name, a title and a finding.

Run it: python examples/extend/new_check.py SOURCE OUT    (any file that `tuneloop prepare` reads)
"""

import sys

import tuneloop
from tuneloop.data.checks import Finding, Overview, check, examples_of


@check("shouting", "prompts in capitals")
def shouting(overview: Overview) -> Finding:
    """Warn where more than one row in a hundred shouts."""
    rows = [i for i in overview.rows().tolist() if overview.row(i).messages[0]["content"].isupper()]
    share = len(rows) / max(len(overview.rows()), 1)
    message = f"{len(rows)} rows ask in capitals ({share:.1%})"
    remedy = "Write them in small letters, unless your users shout as well."
    return Finding("warn" if share > 0.01 else "ok", message, len(rows), remedy, examples_of(overview, rows))


if __name__ == "__main__":
    dataset = tuneloop.prepare(sys.argv[1], out=sys.argv[2])
    print(next(found for found in dataset.manifest["checks"] if found["name"] == "shouting"))
