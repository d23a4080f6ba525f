"""Every message that the troubleshooting page quotes is one that the program writes."""

from __future__ import annotations

import re

import pytest

from places import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^> (.+)$", PAGE, re.MULTILINE)


def plain(text: str) -> str:
    """Source without what stands between the parts of a message: placeholders, quotes, line ends of adjacent strings."""
    text = re.sub(r"\"\s*\n\s*f?\"", "", text)  # adjacent string literals
    text = re.sub(r"\{(?:[^{}\"]|\{[^{}\"]*\})*\}", "...", text)
    return re.sub(r"\s+", " ", text)


SOURCE = "\n".join(plain(path.read_text(encoding="utf-8")) for path in (ROOT / "src" / "tuneloop").rglob("*.py"))
# Words that the program puts in where the source has a placeholder.
FILLED = {
    "takes more than 2 seconds": "takes more than ... seconds",
    "more than 20,000 parts": "more than ... parts",
    "a third of": "...",
    "MLflow is not": "... is not",
    " at step ...:": " ...:",
    "have ... checks at": "have ... at",
    "of ... records (...) were rejected; ... are": "of ... rejected; ... are",
    "in ... records": "in ...",
}


def test_the_page_quotes_messages() -> None:
    assert len(QUOTED) > 20


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_in_the_source(message: str) -> None:
    for written, source in FILLED.items():
        message = message.replace(written, source)
    parts = [part.strip(" ,;:()") for part in message.split("...")]
    parts = [part for part in parts if len(part) > 3]
    assert parts, message
    pattern = r"[^\n]{0,80}?".join(re.escape(part) for part in parts)
    assert re.search(pattern, SOURCE), message
