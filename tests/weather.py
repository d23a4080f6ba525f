"""A few questions of different lengths behind one instruction, for tests of answers and scores."""

from tuneloop.models.load import Model

SYSTEM = {"role": "system", "content": "You answer questions about the weather on far planets, briefly and with care."}
QUESTIONS = [
    "Rain?",
    "Is it windy on Jupiter in the autumn, or does it only look so?",
    "Why",
    "How cold " * 9,
    "And Mars?",
]


def prompts_of(model: Model, system: bool = True) -> list[list[int]]:
    """The questions as token ids, with or without the instruction."""
    turns = [[SYSTEM] * system + [{"role": "user", "content": q}] for q in QUESTIONS]
    return [model.template.prompt_ids(t) for t in turns]  # type: ignore[arg-type]
