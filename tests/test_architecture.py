"""The rooms of the package: what may import what, and how large a room may grow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import qsession

PACKAGE = Path(qsession.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [
    {"errors", "config", "creation", "statistics", "models", "urls", "by_url", "events", "rows"},
    {"waiting"},
    {"sqlite", "servers"},
    {"engine", "tools"},
    {"observation"},
    {"session"},
    {"pool"},
    {"migrate", "transfer", "copying"},
    {"__init__"},
    {"commands", "ext", "testing"},
    {"cli"},
    {"__main__"},
]
"""From the ground up. A module imports from its own floor and from those below."""

FORMER = {"qsession.sqlite.backup"}
"""Where documented names used to be. Applications may import from there; nothing in here may."""


def name_of(path: Path) -> str:
    """The module in a file, with dots."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in FILES}


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, or are there for type checking."""
    for statement in body:
        yield statement
        for part in ("body", "orelse", "finalbody"):
            if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from at_import(getattr(statement, part, []))


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports when it is imported itself.

    What is imported for type checking only counts as well: who reads a file has to know it.
    """
    found = set()
    for statement in at_import(ast.parse(path.read_text()).body):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert not statement.level, f"{path}: imports are absolute"
            base = statement.module or ""
            for alias in statement.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in NAMES else base)
    return {name for name in found if name in NAMES} - {name_of(path)}


def floor_of(name: str) -> int:
    """How high a module lies. One that only keeps an old import working lies above all others."""
    if name in FORMER:
        return len(FLOORS)
    room = [*name.split("."), "__init__"][1]
    for height, rooms in enumerate(FLOORS):
        if room in rooms:
            return height
    pytest.fail(f"{name} has no floor yet: add it where it belongs")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    """No module imports from a floor above its own."""
    name = name_of(path)
    for other in imports_of(path):
        assert floor_of(other) <= floor_of(name), f"{name} imports {other}, which lies above it"


@pytest.mark.parametrize("name", FORMER)
def test_former_places_hold_nothing(name: str) -> None:
    """They hand on what is elsewhere, and say that they are deprecated."""
    module = import_module(name)
    assert (module.__doc__ or "").startswith("Deprecated")
    tree = ast.parse(Path(str(module.__file__)).read_text())
    assert {type(each) for each in tree.body} == {ast.Expr, ast.ImportFrom, ast.Assign}
    for each in module.__all__:
        assert getattr(module, each).__module__ != name


def test_sqlite_and_servers_know_nothing_of_each_other() -> None:
    """Neither room imports the other, not even inside a function."""
    for room, other in (("sqlite", "servers"), ("servers", "sqlite")):
        for path in (PACKAGE / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    assert other not in (node.module or "").split("."), path
                    assert other not in {each.name for each in node.names}, path
                elif isinstance(node, ast.Import):
                    assert not any(f"qsession.{other}" in each.name for each in node.names), path


def test_no_module_imports_itself_in_a_circle() -> None:
    """Inside a floor as well, imports have a direction, also those for type checking."""
    TopologicalSorter({name_of(path): imports_of(path) for path in FILES}).prepare()


LONG = {
    "qsession.sqlite.transaction.transaction": (
        "the one place where a transaction moves from state to state, which no second file may do"
    ),
}
"""Files of more than 700 lines, and why they are not two."""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_and_say_what_they_are_for(path: Path) -> None:
    """Each file has a docstring that says something, and no more than 700 lines without a reason.

    One class over two files is worse than a long file.
    """
    source = path.read_text()
    assert len(ast.get_docstring(ast.parse(source)) or "") > len("a few words")
    assert (source.count("\n") <= 700) != (name_of(path) in LONG)


FOLDERS = sorted({path.parent for path in FILES})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folders_say_what_they_offer(folder: Path) -> None:
    """Each has an ``__init__`` that says so, and a dozen files at the most, or a reason."""
    offered = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert offered
    assert len(offered) > len("a few words")
    limit = 40 if folder.name == "transfer" else 16  # a file for each kind of difference
    assert len(list(folder.glob("*.py"))) <= limit


def test_public_names_are_in_all() -> None:
    """What the package offers and what ``__all__`` lists are the same, in order."""
    offered = {
        name
        for name in dir(qsession)
        if not name.startswith("_") and not isinstance(getattr(qsession, name), ModuleType)
    }
    assert offered - {"qsession"} == set(qsession.__all__) - {"qsession"}
    assert sorted(qsession.__all__) == sorted(set(qsession.__all__))
    for name in qsession.__all__:
        assert hasattr(qsession, name)


def test_no_public_name_hides_a_module() -> None:
    """``qsession.stats`` would be a function or a module, by what was imported first."""
    public = {name for name in qsession.__all__ if not isinstance(getattr(qsession, name), type)}
    assert not public & {name.split(".")[1] for name in NAMES if "." in name}


@pytest.mark.parametrize("name", [n for n in qsession.__all__ if n != "qsession"])
def test_public_names_have_docstrings(name: str) -> None:
    """Every public class and function says what it promises."""
    assert getattr(qsession, name).__doc__
