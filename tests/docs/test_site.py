"""The site: its reference has all public names. `make docs` checks links, headings and the rest."""

from __future__ import annotations

import re

from folders import ROOT

import qsession
import qsession.testing


def test_the_reference_has_all_public_names() -> None:
    """Each name of the package and of its kit for tests is on a page, or on one of a class."""
    pages = "\n".join(each.read_text() for each in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: \S*?(\w+)$|^        - (\w+)$", pages, re.MULTILINE))
    names = {name for pair in shown for name in pair} | {"qsession"}  # the maker is a SessionMaker
    assert set(qsession.__all__) | set(qsession.testing.__all__) <= names
