"""The real vLLM on a processor, in an environment of its own: `make test-vllm` makes it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

PYTHON = os.environ.get("TUNELOOP_VLLM", "")  # of its environment; empty: these tests are skipped
# One core: with several it waits for itself where others compute. Logits in fp32 are not rounded to eighths of a nat.
# Blocks of the prefix cache hold 32 tokens, on a processor otherwise 128, which short prompts do not fill.
VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "1"), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_LOGGING_LEVEL": "WARNING",
}  # fmt: skip
ARGUMENTS = (
    "--served-model-name", "base", "--max-model-len", "1024", "--enforce-eager", "--generation-config", "vllm",
    "--hf-overrides", '{"head_dtype": "float32"}', "--block-size", "32", "--max-logprobs", "128",
)  # fmt: skip
LORA = ("--enable-lora", "--max-lora-rank", "16", "--max-loras", "3")
READY_WITHIN = 600.0


class RealVllm:
    """A server in a process of its own, on a free port."""

    def __init__(
        self,
        base: Path,
        log: Path,
        *arguments: str,
        lora: bool = True,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.base, self.log, self.variables = base, log, variables
        self.arguments = (*ARGUMENTS, *(LORA if lora else ()), *arguments)
        self.adapters: list[Path] = []  # that it was started with
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self) -> RealVllm:
        """Start it, and wait until it answers."""
        script = str(Path(PYTHON).with_name("vllm"))
        text = [PYTHON, script, "serve", str(self.base), "--host", "127.0.0.1", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*text, *self.arguments],
                env={**os.environ, **VARIABLES, **self.variables}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + READY_WITHIN
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return self
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                assert time.monotonic() < until, self.log.read_text()[-3000:]
                time.sleep(1)

    def kill(self) -> None:
        """End it and its children at once, as the kernel does when memory runs out."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def forget(self) -> None:
        """Empty its prefix cache, once no request is under way; it needs `VLLM_SERVER_DEV_MODE`."""
        until = time.monotonic() + 30
        while self.metric("vllm:num_requests_running"):
            assert time.monotonic() < until
            time.sleep(0.1)
        reset = urllib.request.Request(f"{self.address}/reset_prefix_cache", method="POST")
        with urllib.request.urlopen(reset, timeout=30):
            pass

    def processes(self, name: str) -> list[int]:
        """Ids of its processes that have a word in their name, as `EngineCore`, which computes."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(path.name)) == self.process.pid and name in (path / "cmdline").read_text():
                    found.append(int(path.name))
        return found

    def metric(self, name: str) -> float:
        """A number of its `/metrics`, summed over labels."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))
