"""Requests that a program makes up from `/openapi.json`: no answer may be a 500 or undocumented.

    python benchmarks/serve_fuzz.py [--seconds 60] [--seed 1]

Schemathesis (MIT), which is installed into an environment of its own, sends valid and invalid bodies, methods and headers
to a server with an engine that answers at once. Exit status 1: an answer was wrong; how to send the request again is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "helpers"), str(ROOT / "benchmarks")]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,unsupported_method"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    from live_server import StubEngine, live
    from serve_gateway import environment

    from tuneloop.serving.gateway import ServedModel

    program = environment("schemathesis", "schemathesis", "schemathesis") / "schemathesis"
    models = {
        "stub": ServedModel("stub"),
        "labels": ServedModel("labels", labels=("a", "b"), label_tokens={"a": 1, "b": 1}),
    }
    with tempfile.TemporaryDirectory() as folder, live(Path(folder), StubEngine(), models) as (address, gateway):
        done = subprocess.run(
            [
                str(program), "run", f"{address}/openapi.json", "--phases", "coverage,fuzzing", "-c", CHECKS,
                "--max-time", str(options.seconds), "--seed", str(options.seed),
            ], cwd=folder,
        )  # fmt: skip
        counts = gateway.store.counts
        print(f"store: {counts.stored:,} records written, {counts.losses} lost, {counts.spilled} spilled")
    sys.exit(1 if done.returncode or counts.losses else 0)


if __name__ == "__main__":
    main()
