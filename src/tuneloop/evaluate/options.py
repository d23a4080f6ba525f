"""What is evaluated on which rows: the options of `tuneloop evaluate`, which Python and benchmarks give by the same names."""

from __future__ import annotations

from typing import Literal

from tuneloop.core.files import Config
from tuneloop.core.flag import flag


class EvalOptions(Config):
    """Rows and prompts of an evaluation; each field is an option."""

    predictions: str = flag("", "FILE", 'Measure answers made elsewhere: rows {"id" or "row", "prediction"}.')
    dataset: str = flag("", "FOLDER", "Prepared data set; a run knows its own.", "-d")
    split: str = flag("test", "NAME", "Split: train, val or test.", "-s")
    data: str = flag("", "FILE", "A file whose rows are used instead of a split's.", "--data", "--references")
    base: str = flag("", "MODEL", "Base of an adapter; of a model, what it was made from.")
    few_shot: int = flag(0, "N", "Examples in the prompt, from the training split.", least=0)
    examples: Literal["balanced", "nearest"] = flag(
        "balanced", "NAME", "How they are picked: balanced, or nearest to each row."
    )
    prompt: str = flag("", "FILE", "Template with {input}: a text, or YAML with keys user and system.")
    production: str = flag("", "FILE", "What users sent: says whether the test resembles it, and reweights the score.")
    name: str = flag("", "NAME", "Name of the system in the result; default: its kind.")
    out: str = flag("", "FOLDER", "Folder for eval.json; default: the run's, or in evals/.", "-o")
    on: str = flag("", "ray", "Ask the model by actors of a Ray cluster: ray, or ray://HOST:PORT.")
    actors: int = flag(0, "N", "Copies of the model there; default: one for each GPU, else for each machine.", least=0)
