"""Names of persons, by a language model: the optional stage of the search for personal data."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.data.pii.identifiers import Span

# The best one that is installed, else any that is made from one.
MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm")
NEXT_STEP = (
    "pip install presidio-analyzer spacy && python -m spacy download en_core_web_lg, or leave data.personal.names off"
)
SCORE = 0.6  # confidence of presidio-analyzer; spaCy's names get 0.85


def person_names(text: str) -> list[Span]:
    """Names of persons in an English text (presidio-analyzer over spaCy's named entities).

    Raises:
        UserError: presidio-analyzer or an English spaCy model is not installed, or the model can't be loaded.
    """
    if not any(c.isupper() for c in text):
        return []
    results = _analyzer().analyze(text=text, language="en", entities=["PERSON"], score_threshold=SCORE)
    return [("PERSON", result.start, result.end) for result in results]


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    if importlib.util.find_spec("presidio_analyzer") is None or importlib.util.find_spec("spacy") is None:
        raise UserError(
            "Person names need presidio-analyzer, which is not installed",
            where="data.personal.names",
            next_step=NEXT_STEP,
        )
    # presidio-analyzer downloads a missing model by itself: here nothing is fetched unasked.
    import spacy

    others = sorted(name for name in spacy.util.get_installed_models() if name.startswith("en_core_web"))
    model = next((name for name in (*MODELS, *others) if spacy.util.is_package(name)), None)
    if model is None:
        raise UserError(
            "Person names need an English model of spaCy, and none is installed",
            where=f"data.personal.names; looked for {', '.join(MODELS)}",
            next_step=NEXT_STEP,
        )
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NlpEngineProvider
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
    try:
        engine = NlpEngineProvider(nlp_configuration=settings).create_engine()
    except (OSError, ValueError, ImportError) as error:  # a model of another version, or one that lacks files
        raise UserError(
            f"The language model for names can't be loaded: {str(error).splitlines()[0]}",
            where=f"data.personal.names; {model}",
            next_step=NEXT_STEP,
        ) from None
    registry = RecognizerRegistry(recognizers=[SpacyRecognizer(supported_language="en")], supported_languages=["en"])
    return AnalyzerEngine(nlp_engine=engine, registry=registry, supported_languages=["en"])
