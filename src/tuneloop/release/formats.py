"""The formats of `tuneloop export`: one record each, read by the command, the export and the model card."""

from __future__ import annotations

from dataclasses import dataclass

from tuneloop.core.files import Config
from tuneloop.core.flag import flag
from tuneloop.models.methods import OWN
from tuneloop.records.encoder import ENCODER, ENCODER_FOLDER, HEAD
from tuneloop.records.prompt import EXAMPLES, PROMPT

ONNX = "onnx"
PROMPT_FORM = "prompt"
OF_ENCODERS = (ENCODER_FOLDER, ONNX)  # the formats of a run of an encoder, the usual one first
# Runs that trained no weights of a model that writes: what they are, and their formats, the usual one first. By what
# `layout_of` says of their result.
OTHER_FORMS = {"encoder": ("an encoder with a head", OF_ENCODERS), "prompt": ("a prompt", (PROMPT_FORM,))}
# Files of a run that these formats take as they are.
AS_THEY_ARE = {
    ENCODER_FOLDER: (HEAD, ENCODER, OWN), ONNX: (HEAD, ENCODER, OWN), PROMPT_FORM: (PROMPT, EXAMPLES, OWN),
}  # fmt: skip


@dataclass(frozen=True)
class ExportForm:
    """A format that a run can be exported in; its files are written in `release/artifact.py`."""

    help: str  # what it is, for the option `--format`
    is_model: bool  # it is a whole model; else it is for its base
    library: str  # the hub's name of the library that loads it
    relation: str  # to its base, as the hub names it; a model in fewer bits is always `quantized`
    loading: str  # for the card; BASE and FOLDER are replaced, ARGUMENT by what the method's base needs
    weights: str = ""  # of a GGUF file: the format whose weights it holds


_MERGED = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
turns = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=200, do_sample=False)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```"""
_ADAPTER = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("BASE", dtype="auto"ARGUMENT)
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")  # with the chat template that was trained
```"""
_SERVER = "```sh\nollama create NAME -f Modelfile     # in this folder\nllama-server -m {files} --jinja\n```"
_GGUF = _SERVER.format(files="*.gguf")
_GGUF_LORA = "It is for a GGUF file of BASE, put here as `base.gguf`; its scale is 1.\n\n" + _SERVER.format(
    files="base.gguf --lora *lora*.gguf"
)

_ENCODER = """It is for BASE, which is not in this folder.

```sh
tuneloop serve FOLDER
tuneloop predict FOLDER rows.jsonl --out labelled.csv
```"""
_ONNX = """```python
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

manifest = json.load(open("FOLDER/encoder.json"))
tokenizer = Tokenizer.from_file("FOLDER/tokenizer.json")
tokenizer.enable_truncation(manifest["max_tokens"])
tokenizer.enable_padding()
texts = tokenizer.encode_batch(["..."])
inputs = {"input_ids": [text.ids for text in texts], "attention_mask": [text.attention_mask for text in texts]}
session = onnxruntime.InferenceSession("FOLDER/model.onnx")
(probabilities,) = session.run(None, {name: np.array(value, np.int64) for name, value in inputs.items()})
print([manifest["labels"][place] for place in probabilities.argmax(1)])
```"""

FORMS: dict[str, ExportForm] = {
    "merged": ExportForm("a whole model", True, "transformers", "finetune", _MERGED),
    "adapter": ExportForm("for its base", False, "peft", "adapter", _ADAPTER),
    "gguf": ExportForm("a model for llama.cpp and Ollama", True, "gguf", "quantized", _GGUF, weights="merged"),
    ENCODER_FOLDER: ExportForm("an encoder's head", False, "tuneloop", "adapter", _ENCODER),
    PROMPT_FORM: ExportForm("a prompt for its model", False, "tuneloop", "adapter", _ENCODER),
    ONNX: ExportForm("the encoder with its head, for ONNX Runtime", True, "onnx", "finetune", _ONNX),
    "gguf-lora": ExportForm("an adapter for them", False, "gguf", "adapter", _GGUF_LORA, weights="adapter"),
}


MEASURED_ROWS = 200  # test rows that a GGUF file answers: half a minute for a small model


class WeightOptions(Config):
    """The type of weights, and how it is measured; each field is an option."""

    quant: str = flag(
        "",
        "NAME",
        "Type of a GGUF file's weights, such as q4_k_m or q8_0; default: f16. auto: the smallest that is good enough. "
        "Of a merged model for vLLM: fp8 or w4a16.",
    )
    importance: int = flag(0, "N", "Quantise by what N training rows show to matter (an importance matrix).", least=0)
    measure: int = flag(
        MEASURED_ROWS,
        "N",
        "Test rows that a GGUF file of a whole model answers, by llama.cpp; 0: don't measure it.",
        least=0,
    )
    max_loss: float = flag(0.01, "X", "With --quant auto: how much of the deciding metric may be lost.")
    max_gb: float | None = flag(None, "GB", "With --quant auto: how large the file may be.")
