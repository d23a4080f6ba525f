"""What MkDocs does in addition (`hooks` in mkdocs.yml): pages from outside docs/, the list of commands, links to source files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import make_llms  # of this folder
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Pages that are elsewhere in the repository -> their place in the site.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
NO_COMMANDS = {"index", "settings", "python", "records", "metrics", "reasons", "http"}


def on_config(config: Any) -> Any:
    """Put the pages of all commands into the navigation."""
    reference = sorted(path.stem for path in (ROOT / "docs" / "reference").glob("*.md"))
    for section in next(part["Reference"] for part in config.nav if "Reference" in part):
        if isinstance(section, dict) and section.get("Commands") == "COMMANDS":
            section["Commands"] = [{name: f"reference/{name}.md"} for name in reference if name not in NO_COMMANDS]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are elsewhere."""
    for source, place in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links lead to the site's pages; a link to a source file becomes its path, a block's language loses further words."""
    place = page.file.src_uri
    folder = (
        ROOT / Path(next((source for source, there in ELSEWHERE.items() if there == place), f"docs/{place}")).parent
    )

    def resolved(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        if re.match(r"[a-z]+:", target):
            return match.group(0)
        path = Path(os.path.normpath(folder / target)).relative_to(ROOT).as_posix()
        inside = ELSEWHERE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is None:
            return text if path in text else f"{text} (`{path}`)"
        return f"[{text}]({os.path.relpath(inside, Path(place).parent)}{anchor or ''})"

    markdown = re.sub(r"^```(\w+) .*$", r"```\1", markdown, flags=re.MULTILINE)
    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)", resolved, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Name the dialog of the search, which the theme leaves without a name."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def on_post_build(config: Any) -> None:
    """Write the documentation for language models next to the pages."""
    for name, text in (("llms.txt", make_llms.index()), ("llms-full.txt", make_llms.full())):
        (Path(config.site_dir) / name).write_text(text, encoding="utf-8")
