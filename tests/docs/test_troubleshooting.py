"""docs/howto/troubleshooting.md: its headings are messages that the package has."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from folders import ROOT

import qsession

PAGE = ROOT / "docs" / "howto" / "troubleshooting.md"
TEXT = PAGE.read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### `(.+)`$", TEXT, re.MULTILINE)
HOLE = "\0"
OTHERS = {"CopyError", "GroupAborted", "QSessionError"}
"""Errors that the page need not name: of a command, of no use any more, and the base of all."""


@cache
def messages() -> str:
    """All strings of the package, with a hole for each value that is put into them."""
    found = []
    for file in (ROOT / "qsession").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(each, "value", HOLE) for each in node.values]
                found.append("".join(part if isinstance(part, str) else HOLE for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[.\d]*[rsdf]", HOLE, node.value))
    return "\n\n".join(found)


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_heading_is_a_message(heading: str) -> None:
    """Word for word, in the order of the message, with something for each ellipsis."""
    pattern = f"[^\n]*?{HOLE}[^\n]*?".join(re.escape(each) for each in heading.split("…"))
    found = re.search(pattern, messages())
    assert found is not None, heading


def test_all_errors_are_there() -> None:
    """The page names each error and each warning that a user can meet."""
    names = {each for each in qsession.__all__ if each[0].isupper()}
    raised = {
        name
        for name in names
        if isinstance(getattr(qsession, name), type)
        and issubclass(getattr(qsession, name), Exception)
    }
    missing = {name for name in raised - OTHERS if f"`{name}`" not in TEXT}
    assert not missing
