"""What is shipped: `artifact.json`."""

from __future__ import annotations

from typing import Any, Literal

from tuneloop.core.units import counted, verb
from tuneloop.records.evaluation import Comparison, Metrics, SuiteName
from tuneloop.records.record import Part, Record

ARTIFACT = "artifact.json"
FLOATS = ("F32", "F16", "BF16")  # types of weights that keep what was evaluated
EVALS = "evals"  # folder of a run: an artifact's own evaluation is in it under the artifact's id
SIGNATURE = "artifact.sig"  # of all files, where the artifact was signed


class ArtifactFile(Part):
    """A file's size and hash."""

    bytes: int
    sha256: str


class RunName(Part):
    """The run that an artifact was made from, and its `key`."""

    id: str
    key: str = ""


class BaseModelName(Part):
    """The base model, what identifies its files, and its licence."""

    model: str
    fingerprint: str = ""
    licence: str | None = None


class Merged(Part):
    """What merging an adapter did: tensors that changed, and the largest rounding error, relative to their values."""

    tensors: int
    rounding: float


class GateRecord(Part):
    """What the gate said of the run, and whether it was overruled."""

    status: Literal["pass", "fail", "inconclusive", "stale", "none"] = "none"
    suite: SuiteName | None = None
    forced: bool = False


class EvaluationExcerpt(Part):
    """The run's evaluation, as far as it belongs on the card."""

    name: str
    dataset: str
    split: str
    n: int
    primary: str = ""
    metrics: Metrics
    comparisons: list[Comparison] = []
    words: list[str] = []


class Quantisation(Part):
    """How weights were quantised: tensors of each type, and the mean divergence of the next token (nats)."""

    name: str
    tensor_types: dict[str, int] = {}
    kl: float | None = None


NEAR_TIE = 0.1  # nats between two tokens' log probabilities
PARTED = 20  # answers that differ and are looked at


class SameAnswers(Part):
    """The share of `n` answers that stayed the same, and where others part.

    Args:
        parted: answers that were looked at, of those that differ; 0: none, or nothing is known of them.
        ties: of them, those that part where the model before prefers its token by less than `NEAR_TIE` nats.
        largest_gap: nats by which it prefers its token at most; None: none was looked at.
    """

    share: float
    n: int
    parted: int = 0
    ties: int = 0
    largest_gap: float | None = None

    @property
    def others(self) -> str:
        """Where those part that differ, as a sentence behind another one; empty where nothing is known."""
        if self.largest_gap is None:
            return ""
        return (
            f" Of {counted(self.parted, 'other')} {self.ties} {verb(self.ties, 'parts', 'part')} at a near tie, "
            f"where the run itself prefers its token by less than {NEAR_TIE:g} nats; "
            f"the largest gap is {self.largest_gap:.2g}."
        )


class ArtifactCost(Part):
    """What answering takes, one prompt at a time, on the machine that measured it.

    Args:
        file_bytes: of the weights.
        peak_bytes: most memory of the process; 0: not known.
        prompt_tokens_per_second, answer_tokens_per_second: read and written; `threads`: that computed.
    """

    file_bytes: int
    peak_bytes: int = 0
    prompt_tokens_per_second: float
    answer_tokens_per_second: float
    threads: int = 1


class ArtifactManifest(Record, noun="an artifact", file=ARTIFACT, again="export the run again"):
    """`artifact.json`: an exported run. It is written last and makes the folder complete.

    Args:
        id: by the content of the trained weights; `format`: `merged`, `adapter`, ...
        created, tuneloop: when and by which version.
        task: what the model was trained to answer, see `data.task.TaskSpec`.
        evaluation: the run's; of a GGUF file that was measured its own, compared with the run's (`measured`).
        quantisation, same_answers, cost: of a GGUF file: its types of weights, the share of answers that are the run's,
            what answering takes.
        structured: the share of answers, held to the run's JSON Schema by llama.cpp's server, that are the run's.
        measured: whether `evaluation` is of these files, and not of the run that they were made from.
        files: name in the folder -> size and hash.
    """

    id: str
    format: str
    created: str = ""
    tuneloop: str = ""
    merge: Merged | None = None
    run: RunName
    method: str = ""
    dataset: str = ""
    task: dict[str, Any] | None = None
    base: BaseModelName
    gate: GateRecord = GateRecord()
    evaluation: EvaluationExcerpt | None = None
    quantisation: Quantisation | None = None
    same_answers: SameAnswers | None = None
    cost: ArtifactCost | None = None
    structured: SameAnswers | None = None
    measured: bool = False
    files: dict[str, ArtifactFile]

    @property
    def is_rounded(self) -> bool:
        """Whether the weights have fewer bits than those that were evaluated: the metrics are not the artifact's."""
        types = self.quantisation.tensor_types if self.quantisation is not None else {}
        return not self.measured and any(kind not in FLOATS for kind in types)
