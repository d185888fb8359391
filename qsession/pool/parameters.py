"""Parameters: which parts of an SQL text are placeholders, and what is put in their place.

``$1``, ``$2`` stand for positional arguments, ``:name`` for named ones. Nothing inside a string, a
quoted identifier or a comment is a placeholder. What those look like differs between databases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.exc import ArgumentError, InvalidRequestError

_STRING = r"'(?:[^']|'')*'"
_ESCAPING = r"'(?:[^'\\]|\\.|'')*'"
_IDENTIFIER = r'"(?:[^"]|"")*"'
_BACKTICKS = r"`(?:[^`]|``)*`"
_LINE = r"--[^\n]*"
_BLOCK = r"/\*(?:.*?\*/|.*\Z)"

_QUOTED = {
    "sqlite": (_STRING, _IDENTIFIER, _BACKTICKS, r"\[[^\]]*\]", _LINE, _BLOCK),
    "postgresql": (
        rf"(?<![\w$])[eE]{_ESCAPING}",
        _STRING,
        _IDENTIFIER,
        r"(?<![\w$])(?P<dollars>\$(?:[^\W\d]\w*)?\$).*?(?P=dollars)",
        _LINE,
    ),
    "mysql": (
        _ESCAPING,
        _ESCAPING.replace("'", '"'),
        _BACKTICKS,
        r"--(?=\s|\Z)[^\n]*",
        r"\#[^\n]*",
        _BLOCK,
    ),
}
"""https://sqlite.org/lang_keywords.html and https://sqlite.org/lang_comment.html; PostgreSQL's page
"Lexical Structure", whose block comments nest; MySQL's pages "String Literals" and "Comments".
"""
_QUOTED["mariadb"] = _QUOTED["mysql"]
_NESTING = {"postgresql": r"/\*"}
_NEVER = r"(?!)"

_PATTERN = (
    r"(?P<quoted>{quoted})|(?P<nesting>{nesting})|(?<![\w$])\$(?P<position>\d+)\b"
    r"|::+|(?<![\w\\]):(?P<name>[^\W\d]\w*)|(?<!\\):"
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_CONTROL = re.compile(
    rf"(?:\s|{_LINE}|/\*.*?\*/)*"
    r"(BEGIN|START\s+TRANSACTION|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE)\b",
    re.IGNORECASE | re.DOTALL,
)


@lru_cache
def _pattern(backend: str) -> re.Pattern[str]:
    """Finds what matters in a text. CockroachDB and its like are taken for PostgreSQL."""
    if backend not in _QUOTED:
        backend = "postgresql"
    quoted, nesting = "|".join(_QUOTED[backend]), _NESTING.get(backend, _NEVER)
    return re.compile(_PATTERN.format(quoted=quoted, nesting=nesting), re.DOTALL)


@dataclass(frozen=True)
class _Parsed:
    """A text as SQLAlchemy takes it, and the placeholders it has."""

    clause: TextClause
    positions: int
    """The highest number behind a ``$``; 0 for none."""
    names: frozenset[str]


def bind(
    backend: str, sql: str, args: Sequence[Any], named: Mapping[str, Any]
) -> tuple[TextClause, dict[str, Any]]:
    """The statement and its parameters as SQLAlchemy takes them.

    Raises :class:`sqlalchemy.exc.ArgumentError` where text and arguments do not fit together, and
    :class:`sqlalchemy.exc.InvalidRequestError` for text that begins or ends a transaction.
    """
    parsed = _parse(sql, backend)
    if parsed.names and len(args) == 1 and isinstance(args[0], Mapping) and not named:
        return parsed.clause, _named(parsed, sql, args[0])
    if parsed.names:
        if args:
            raise ArgumentError(
                f"{sql!r} has the placeholders {_list(parsed.names)}: give keyword arguments, or "
                f"one mapping, not {len(args)} positional arguments"
            )
        unknown = named.keys() - parsed.names
        if unknown:
            raise ArgumentError(f"{sql!r} has no placeholder {_list(unknown)}")
        return parsed.clause, _named(parsed, sql, named)
    if named:
        raise ArgumentError(f"{sql!r} has no placeholder {_list(named)}")
    return parsed.clause, _positional(parsed, sql, args)


def bind_many(
    backend: str, sql: str, rows: Iterable[Sequence[Any] | Mapping[str, Any]]
) -> tuple[TextClause, list[dict[str, Any]]]:
    """The same for many sets of parameters: sequences for ``$1``, mappings for ``:name``."""
    parsed = _parse(sql, backend)
    parameters = []
    for row in rows:
        wrong = isinstance(row, (str, bytes)) or not hasattr(row, "__len__")
        if wrong or isinstance(row, Mapping) != bool(parsed.names):
            wanted = f"mappings for {_list(parsed.names)}" if parsed.names else "sequences for $1"
            raise ArgumentError(f"{sql!r} takes {wanted}, not {row!r}")
        if isinstance(row, Mapping):
            parameters.append(_named(parsed, sql, row))
        else:
            parameters.append(_positional(parsed, sql, row))
    return parsed.clause, parameters


def _named(parsed: _Parsed, sql: str, given: Mapping[str, Any]) -> dict[str, Any]:
    missing = parsed.names - given.keys()
    if missing:
        raise ArgumentError(f"{sql!r} has the placeholder {_list(missing)}, but no value for it")
    return {name: given[name] for name in parsed.names}


def _positional(parsed: _Parsed, sql: str, given: Sequence[Any]) -> dict[str, Any]:
    if len(given) != parsed.positions:
        raise ArgumentError(
            f"{sql!r} takes {parsed.positions} positional arguments ($1, $2, ...), "
            f"{len(given)} were given"
        )
    return {f"p{number}": value for number, value in enumerate(given, 1)}


def _list(names: Iterable[str]) -> str:
    return ", ".join(f":{name}" for name in sorted(names))


@lru_cache(maxsize=1_000)
def _parse(sql: Any, backend: str) -> _Parsed:
    """Find the placeholders. Every other colon is escaped, as `text` wants it."""
    if not isinstance(sql, str):
        raise ArgumentError(f"give SQL as a string, not {sql!r}; expressions run on pool.engine")
    control = _CONTROL.match(sql)
    if control:
        raise InvalidRequestError(
            f"{control[1]!r} was not run: on a pool, transactions begin and end with transaction()"
        )
    positions: set[int] = set()
    names: set[str] = set()
    parts: list[str] = []
    at = 0
    pattern = _pattern(backend)
    while match := pattern.search(sql, at):
        parts.append(sql[at : match.start()])
        at = match.end()
        token = match[0]
        if match["nesting"]:
            at = _comment_end(sql, at)
            token = sql[match.start() : at]
        if match["position"]:
            positions.add(int(match["position"]))
            parts.append(_placeholder(sql, match.start(), f"p{match['position']}"))
        elif match["name"]:
            names.add(match["name"])
            parts.append(_placeholder(sql, match.start(), match["name"]))
        else:
            parts.append(token.replace(":", r"\:"))
    parts.append(sql[at:])
    if positions and names:
        raise ArgumentError(
            f"{sql!r} has both ${min(positions)} and {_list(names)}: use one kind of placeholder, "
            r"and write a colon that begins none as '\:'"
        )
    if 0 in positions:
        raise ArgumentError(f"{sql!r} has $0, but placeholders begin with $1")
    return _Parsed(text("".join(parts)), max(positions, default=0), frozenset(names))


def _placeholder(sql: str, at: int, name: str) -> str:
    """What `text` takes for a placeholder; it would not, right behind a colon (``[1:$1]``)."""
    return f" :{name}" if sql[:at].endswith(":") else f":{name}"


def _comment_end(sql: str, at: int) -> int:
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, at):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)
