"""A hook of MkDocs: pages and pictures that lie outside of docs/ are on the site as well."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

TOP = Path(__file__).parent.parent
MOVED = {
    "README.md": "index.md",
    "README.ru.md": "ru.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/results/README.md": "figures/index.md",
} | {
    each.relative_to(TOP).as_posix(): f"figures/{each.name}"
    for each in (TOP / "benchmarks" / "results").glob("*.svg")
}
"""Paths in the repository, and on the site."""
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add what lies outside of docs/."""
    for source, target in MOVED.items():
        files.append(File.generated(config, target, abs_src_path=str(TOP / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links lead to where their files are on the site."""
    here = page.file.src_uri
    source = next((each for each, target in MOVED.items() if target == here), f"docs/{here}")

    def lead(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        target = MOVED.get(path, path.removeprefix("docs/"))
        relative = posixpath.relpath(target, posixpath.dirname(here) or ".")
        return f"]({relative}{found[2] or ''})"

    return LINK.sub(lead, markdown)
