"""llama.cpp in child processes: it computes with GGUF files as all do that serve them."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # A child process with one GGUF file, or none to quantise.
    from tuneloop.inference.llamacpp.process import LlamaCpp as LlamaCpp

    # Whether what computes with GGUF files is here.
    from tuneloop.inference.llamacpp.process import installed as installed

    # Check for it; the refusal names the command that installs it.
    from tuneloop.inference.llamacpp.process import need_llamacpp as need_llamacpp

    # A GGUF file with LoRA files behind the serving protocol.
    from tuneloop.inference.llamacpp.serving import LlamaCppEngine as LlamaCppEngine

    # Whether its server is here.
    from tuneloop.inference.llamacpp.serving import server_installed as server_installed

    # A GGUF file that answers rows.
    from tuneloop.inference.llamacpp.target import GgufTarget as GgufTarget

__getattr__, __dir__ = door(__name__)
