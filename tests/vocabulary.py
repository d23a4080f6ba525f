"""The words of this project: which ones are not used, and what is written in their place. How to write is in docs/style.md.

`python tests/vocabulary.py [FILES]` prints each place as `FILE:LINE: 'word': write ...`, and ends with 1 where there is one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECKED = ("src", "docs", "benchmarks/records", "examples", "recipes", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
ENDINGS = (".py", ".md", ".yaml", ".j2", ".html", ".toml", ".sh")

# Words of others: customers, the prompt of a judge whose answers were measured, a list of English words.
LEFT_OUT = (
    "examples/tickets/",
    "examples/mails/make_mails.py",
    "src/tuneloop/evaluation/judge.yaml",
    "src/tuneloop/data/dedup/minhash.py",
    "docs/style.md",  # its table shows them
)

# A word as it must not be written -> what a reader searches for. Case does not matter.
WORDS: dict[str, str] = {
    r"told(?! apart)": "reported, stated, given",
    r"asked for": "requested",
    r"(?:is|are|was|were|be|been) asked": "queried, requested",
    r"nobody": "no one",
    r"somebody": "someone, a user",
    r"anew": "again",
    r"alongside|beside": "next to, compared with, together with",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"by itself": "on its own, alone",
    r"lent": "shared",
    r"g(?:ive|ives|iving|iven|ave) way": "yield, be preempted",
    r"surely": "significantly",
    r"figures": "results, metrics, numbers",
    r"go(?:es|ing)? on|went on": "continue, resume",
    r"(?:stand|stands|stood|lie|lies|lay) in": "is in",
    r"(?:do|does|did|done) again": "reproduce, repeat",
    r"hand(?:s|ed|ing)? on": "export, pass on",
    r"puts? up": "deploy, start",
    r"likeness|nearness": "similarity",
    r"wish(?:es)?": "option, requirement",
    r"talks": "conversations",
    r"(?:is|are) gone": "elapsed, missing",
    r"at hand": "available",
}
PATTERN = re.compile("|".join(rf"(?P<w{i}>\b(?:{word})\b)" for i, word in enumerate(WORDS)), re.IGNORECASE)


def misused(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, word and what to write instead, of each word in a text that is on the list."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in PATTERN.finditer(line.replace("-", "‑")):
            yield number, match.group(0), list(WORDS.values())[int((match.lastgroup or "w0")[1:])]


# Names of nothing: what holds a value is called what the value is. Fields of records keep the names that files have.
NAMES = ("what", "place", "each", "one", "why")
CODE = ("src", "tests", "benchmarks", "examples")
CALLED_BY_OTHERS = {  # the parameter of a command is the name of its option
    "src/tuneloop/cli/ab.py": ("why",),
    "src/tuneloop/cli/models.py": ("why",),
}


def misnamed(source: str, allowed: Sequence[str] = ()) -> Iterator[tuple[int, str]]:
    """Line and name of each variable, parameter or loop variable of Python code that is named for nothing."""
    tree = ast.parse(source)
    fields = {
        id(n.target)
        for c in ast.walk(tree)
        if isinstance(c, ast.ClassDef)
        for n in c.body
        if isinstance(n, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        name = node.arg if isinstance(node, ast.arg) else ""
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields:
            name = node.id
        if name in NAMES and name not in allowed:
            yield node.lineno, name  # type: ignore[attr-defined]


def files(names: Sequence[str] = ()) -> list[Path]:
    """The files of the repository that are checked."""
    listed = subprocess.run(
        ["git", "ls-files", "--", *(names or CHECKED)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [
        ROOT / name for name in listed.stdout.splitlines() if name.endswith(ENDINGS) and not name.startswith(LEFT_OUT)
    ]


def main(names: Sequence[str]) -> int:
    """Print every place; 1 where there is one."""
    places = [(file, *path) for file in files(names) for path in misused(file.read_text(encoding="utf-8"))]
    for file, line, word, instead in places:
        print(f"{file.relative_to(ROOT)}:{line}: {word!r}: write {instead}")
    return int(bool(places))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
