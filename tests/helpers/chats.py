"""Conversations in which tokenizers like to differ: Unicode, white space, numbers, code, tools, text that looks like control tokens."""

from __future__ import annotations

import random
from typing import Any

TEXTS = (
    "Where is my parcel?", "I'm HERE, WE'LL see: don't, they'RE", "12345 1,234.56 3 33 333 3333 ½ ② ٣٤٥", "naïve ÉTÉ e\u0301 Ünï",
    "中文字符。ひらがな 한국어", "עברית हिन्दी ไทย", "🚀 👩‍👩‍👧 🏳️‍🌈", "two  spaces\tand tabs\n\n\nthree lines\r\nCRLF \n end",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # ok", "<|im_start| <|eot_id >| [INST] <s> </s> <<SYS>> {{ bos_token }} {% raw %}",
    "<tool_call>{\"name\": \"f\"}</tool_call> <|python tag|>", "https://example.com/a?b=c&d=%20#e foo_bar fooBar", "...!!! --- ### *** $$$ ^^^",
    "non\u00a0breaking\u3000wide\u200bzero", "x" * 60, "A", "No. 7 costs $3.50 (or €2,99)", "Straße, Łódź, İstanbul, ﬁne",
)  # fmt: skip
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "track", "description": "Where it is", "parameters": {"type": "object", "properties": {"id": {"type": "string"}}}}}
]  # fmt: skip


def chats(count: int = 200, *, tools: bool = True) -> list[tuple[list[Any], list[dict[str, Any]]]]:
    """(messages, tools) of so many conversations, the same ones each time."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.sample(TEXTS, draw.randint(1, 4)))

    found = []
    for i in range(count):
        turns: list[Any] = [{"role": "system", "content": text()}] if i % 3 else []
        for _ in range(draw.randint(0, 2)):
            turns += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
        turns.append({"role": "user", "content": text()})
        found.append((turns, TOOLS if tools and i % 5 == 0 else []))
    return found
