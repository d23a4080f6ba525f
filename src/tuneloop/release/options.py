"""How the weights of a GGUF file are wanted: the options of `tuneloop export`, which Python gives by the same names."""

from __future__ import annotations

from tuneloop.core.files import Config
from tuneloop.core.flag import flag

MEASURED_ROWS = 200  # test rows that a GGUF file is asked: half a minute for a small model


class WeightsWanted(Config):
    """The type of weights, and how it is measured; each field is an option."""

    quant: str = flag(
        "", "NAME", "Type of a GGUF file's weights, such as q4_k_m or q8_0; default: f16. auto: the smallest that is good enough. Of a merged model for vLLM: fp8 or w4a16."
    )  # fmt: skip
    importance: int = flag(
        0, "N", "Quantise by what N training rows show to matter (an importance matrix).", least=0
    )  # fmt: skip
    measure: int = flag(
        MEASURED_ROWS, "N", "Ask a GGUF file of a whole model N test rows, by llama.cpp; 0: don't measure it.", least=0
    )
    max_loss: float = flag(0.01, "X", "With --quant auto: how much of the deciding metric may be lost.")
    max_gb: float | None = flag(None, "GB", "With --quant auto: how large the file may be.")
