"""llama.cpp's server in a separate process; `llamacpp.serving` starts it.

    python -m tuneloop.inference.llamacpp.server REPORT < SETTINGS

SETTINGS is one line of JSON; the server's address goes into the file descriptor REPORT once the model is loaded. The
process ends when its standard input does, which happens however the parent ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from tuneloop.core.foreign import parse_json


def main() -> None:
    """Serve until the parent ends."""
    settings = parse_json(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    import xllamacpp

    server = xllamacpp.Server(_params(xllamacpp, settings))
    with os.fdopen(int(sys.argv[1]), "w") as report:
        report.write(json.dumps({"address": server.listening_address}) + "\n")
    threading.Event().wait()


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


def _params(xllamacpp: Any, settings: dict[str, Any]) -> Any:
    """What llama.cpp's server is started with.

    `cache_ram_mib=0`: its prompt cache in memory gives one adapter's keys and values to another.
    `lora_init_without_apply` leaves every scale at 1, so each request must name all scales.
    """
    params = xllamacpp.CommonParams()
    params.model.path = settings["file"]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in settings["adapters"]]
    params.lora_init_without_apply = True
    params.cache_ram_mib = 0
    params.n_parallel, params.n_ctx = settings["slots"], settings["slots"] * settings["context"]
    params.kv_unified = params.fit_params = params.ui = params.use_jinja = params.ctx_shift = False
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [settings["key"]]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    return params


if __name__ == "__main__":
    main()
