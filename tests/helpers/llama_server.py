"""llama.cpp's server by the options that containers start it with: what `llama-server` is, from the wheel of xllamacpp.

Unknown options are refused, as by the program itself. The key comes by LLAMA_API_KEY.
"""

from __future__ import annotations

import argparse
import os
import threading


def main() -> None:
    """Serve until killed."""
    import xllamacpp

    parser = argparse.ArgumentParser(prog="llama-server", allow_abbrev=False)
    for name in ("--model", "--alias", "--host"):
        parser.add_argument(name, required=True)
    for name in ("--port", "--ctx-size", "--parallel"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--n-gpu-layers", type=int)
    parser.add_argument("--jinja", action="store_true")
    given = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = given.model, {given.alias}
    params.hostnames, params.port, params.n_parallel, params.n_ctx = (
        [given.host],
        given.port,
        given.parallel,
        given.ctx_size,
    )
    params.use_jinja, params.ui, params.fit_params = given.jinja, False, False
    params.api_keys = [os.environ["LLAMA_API_KEY"]]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
