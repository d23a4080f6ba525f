"""An encoder with its head as one ONNX file: token ids to the labels' probabilities, without tuneloop or torch."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import warnings
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_bytes
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.models import Classifier, open_classifier

ONNX_FILE, OPSET = "model.onnx", 17
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "probabilities"
NEAR = 1e-5  # of probabilities: how far the file's may be from the run's


def write_onnx(trained: Path, out: Path) -> None:
    """Write `model.onnx` and `tokenizer.json`, and compare its probabilities with the run's where that is possible.

    Inputs: `input_ids` and `attention_mask`, int64 (texts, tokens). Output: `probabilities`, fp64 (texts, labels), in
    the order of `encoder.json`'s labels.

    Raises:
        UserError: onnx is not installed, this encoder can't be exported, or its file gives other probabilities.
    """
    classifier = open_classifier(trained)
    if importlib.util.find_spec("onnx") is None:
        raise UserError("ONNX files need the package onnx", where="--format onnx", next_step="pip install onnx")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / ONNX_FILE
        _export(classifier, file)
        _compare(classifier, file)
        write_bytes(out / ONNX_FILE, file.read_bytes())
    classifier.encoder.tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))


def _export(classifier: Classifier, file: Path) -> None:
    import torch

    encoder, manifest, head = classifier.encoder, classifier.manifest, classifier.head
    weight_LH = torch.tensor(head.weight / manifest.temperature)
    bias_L = torch.tensor(head.bias / manifest.temperature)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = encoder.net

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            scores_BL = encoder.pooled(input_ids, attention_mask).double() @ weight_LH.T + bias_L
            return scores_BL.sigmoid() if manifest.kind == "labels" else scores_BL.softmax(1)

    ids = torch.tensor([[1, 2, 3], [3, 2, 1]])
    sizes = {name: {0: "texts", 1: "tokens"} for name in INPUTS} | {OUTPUT: {0: "texts"}}
    names: dict[str, Any] = {"input_names": list(INPUTS), "output_names": [OUTPUT], "dynamic_axes": sizes}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing, and that another exporter, which needs more, is the default
            torch.onnx.export(
                Network().eval(), (ids, torch.ones_like(ids)), str(file), dynamo=False, opset_version=OPSET, **names
            )
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        location = f"This encoder can't be exported to ONNX: {' '.join(str(error).split())[:200]}"
        raise UserError(location, where=str(classifier.folder), next_step="leave --format out") from None


def _compare(classifier: Classifier, file: Path) -> None:
    """Say how near the file's probabilities are to the run's, on its labels' names and texts of several lengths."""
    if importlib.util.find_spec("onnxruntime") is None:
        say("onnx      not compared with the run: pip install onnxruntime")
        return
    import numpy as np

    runtime: Any = importlib.import_module("onnxruntime")
    texts = [*classifier.manifest.labels, "", "a longer text " * 10, "word " * 1000]
    ids = classifier.encoder.ids(texts)
    width = max(map(len, ids))
    table, mask = np.zeros((2, len(ids), width), np.int64)
    for row, text in enumerate(ids):
        table[row, : len(text)], mask[row, : len(text)] = text, 1
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run([OUTPUT], dict(zip(INPUTS, (table, mask), strict=True)))
    difference = float(np.abs(probabilities - np.exp(classifier.log_probabilities(ids))).max())
    if not difference <= NEAR:
        message = f"The ONNX file's probabilities are up to {difference:.2g} from the run's"
        raise UserError(message, where=str(classifier.folder), next_step="leave --format out")
    say(f"onnx      {counted(len(texts), 'text')}: probabilities are those of the run, within {difference:.1g}")
