"""Logs of Inspect: `.eval` (a zip with a file for each sample) and JSON, of versions 1 and 2."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import opened_zip, parse_json
from tuneloop.evaluation.foreign.record import ForeignEvaluation, Observation, collected

TOOL = "Inspect"


def claims(value: Any) -> bool:
    """Whether a JSON document is an Inspect log."""
    return isinstance(value, dict) and isinstance(value.get("eval"), dict) and "task" in value["eval"]


def read(source: str, value: Any) -> list[ForeignEvaluation]:
    """A log as JSON."""
    if not isinstance(value.get("samples"), list):
        message = "This Inspect log has no samples, only its header"
        raise UserError(message, where=source, next_step="write it with --log-samples, or give the .eval file")
    return [_evaluation(source, value, value["samples"])]


def read_zip(source: str) -> list[ForeignEvaluation]:
    """A log as a zip; samples are read one at a time."""
    try:
        with _opened(source) as log:
            names = log.namelist()
            header = next((n for n in ("header.json", "_journal/start.json") if n in names), "")
            if not header:
                message = "A zip file, but no Inspect log: it has no header.json"
                raise UserError(message, where=source, next_step="give a .eval file as Inspect writes it")
            # A member that was written again is there twice, and the last one counts. A long sample is a folder.
            alone = [n for n in dict.fromkeys(names) if re.fullmatch(r"samples/([^/]+|.+/sample)[.]json", n)]
            samples = (parse_json(log.read(n)) | _further(log, n, names) for n in alone)
            return [_evaluation(source, parse_json(log.read(header)), samples)]
    except UserError:
        raise
    except Exception as error:  # of three compressions, of JSON and of what it holds
        message = f"The Inspect log is damaged or cut off: {error}"
        raise UserError(
            message, where=source, next_step="copy it again, or write it with inspect log convert"
        ) from None


def _further(log: Any, name: str, names: Sequence[str]) -> dict[str, Any]:
    """The metadata of a long sample, which are a file of their own."""
    file = name.removesuffix("sample.json") + "metadata.json"
    return {"metadata": parse_json(log.read(file))} if name.endswith("/sample.json") and file in names else {}


@contextmanager
def _opened(source: str) -> Iterator[Any]:
    """A zip file whose members may be compressed with Zstandard, which Python has from 3.14 on."""
    with opened_zip(source) as log:
        if all(member.compress_type != 93 for member in log.infolist()):  # 93: Zstandard
            yield log
            return
    try:
        from backports.zstd import zipfile as with_zstd
    except ImportError:
        message = "Reading this log needs backports.zstd, which is not installed"
        raise UserError(message, where=source, next_step="pip install backports.zstd") from None
    with opened_zip(source, with_zstd.ZipFile) as log:
        yield log


def _evaluation(source: str, header: Mapping[str, Any], samples: Iterable[Any]) -> ForeignEvaluation:
    status = header.get("status", "started")
    notes = [] if status == "success" else [f"The log's status is {status!r}: it may hold a part of the samples only."]
    system = str(header["eval"].get("model") or "")
    return collected(source, TOOL, system, _observations(source, samples), notes)


def _observations(source: str, samples: Iterable[Any]) -> Iterator[Observation]:
    for sample in samples:
        if not isinstance(sample, Mapping) or "id" not in sample:
            message = "A sample of this Inspect log has no id"
            raise UserError(message, where=source, next_step="write the log again with a current Inspect")
        target, error = sample.get("target", ""), sample.get("error")
        yield Observation(
            id=str(sample["id"]),
            scores=_scores(sample),
            input=_whole(sample.get("input"), sample.get("attachments") or {}),
            reference=target if isinstance(target, str) else "\n".join(map(str, target)),
            answer=str((sample.get("output") or {}).get("completion") or ""),
            epoch=str(sample.get("epoch", "")),
            error=str(error.get("message", error) if isinstance(error, Mapping) else error or ""),
            meta=sample.get("metadata") or {},
        )


def _whole(value: Any, attachments: Mapping[str, str]) -> Any:
    """An input with the long texts that are kept apart in the sample; None where one is elsewhere in the log."""
    text = json.dumps(value)
    for name, content in attachments.items() if "attachment://" in text else ():
        text = text.replace(f"attachment://{name}", json.dumps(content)[1:-1])
    return None if "attachment://" in text else parse_json(text)


def _scores(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Scorer -> value; one that gives several values has a metric for each. Version 1 has one score, unnamed."""
    scorers = sample.get("scores") or ({"score": sample["score"]} if sample.get("score") else {})
    scores: dict[str, Any] = {}
    for name, score in scorers.items():
        value = score.get("value") if isinstance(score, Mapping) else score
        several = value if isinstance(value, Mapping) else None
        scores |= (
            {name: value} if several is None else {f"{name}/{part}": part_score for part, part_score in several.items()}
        )
    return scores
