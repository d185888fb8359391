"""Parameters: the placeholders in an SQL text, and their values.

``$1``, ``$2`` stand for positional arguments, ``:name`` for named ones. Text inside a string, a
quoted identifier or a comment is not a placeholder. Their syntax differs between databases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_ESCAPED = re.compile(r"\\(:[\w$]*)(?![:\w$])")
"""A colon that the application has escaped, outside quotes, as in `text`."""
LONG = 10_000
"""The number of characters above which a text is not cached."""
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_CONTROL = re.compile(
    rf"(?:\s|{_LINE}|/\*.*?\*/)*"
    r"(BEGIN|START\s+TRANSACTION|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE)\b",
    re.IGNORECASE | re.DOTALL,
)


@lru_cache
def _pattern(backend: str) -> re.Pattern[str]:
    """The pattern for placeholders and quotes. Unknown backends are treated as PostgreSQL."""
    if backend not in _QUOTED:
        backend = "postgresql"
    quoted, nesting = "|".join(_QUOTED[backend]), _NESTING.get(backend, _NEVER)
    return re.compile(_PATTERN.format(quoted=quoted, nesting=nesting), re.DOTALL)


@dataclass(frozen=True)
class _Parsed:
    """A text in the forms for SQLAlchemy and for SQLite, and its placeholders."""

    clause: TextClause
    sql: str
    """The text with ``?`` for each placeholder."""
    keys: tuple[str, ...]
    """The SQLAlchemy name of each placeholder."""
    positions: int
    """The highest number after a ``$``; 0 if there is none."""
    names: frozenset[str]
    indexes: tuple[int, ...] | None
    """The argument of each placeholder; None if they are in order."""


Given = Sequence[Any] | Mapping[str, Any]


def bind(
    backend: str, sql: str, args: Sequence[Any], named: Mapping[str, Any]
) -> tuple[TextClause, dict[str, Any]]:
    """The statement and its parameters as SQLAlchemy takes them.

    Raises `sqlalchemy.exc.ArgumentError` where text and arguments do not fit together, and
    `sqlalchemy.exc.InvalidRequestError` for text that begins or ends a transaction.
    """
    parsed = _parsed(sql, backend)
    return parsed.clause, _by_name(parsed, sql, _given(parsed, sql, args, named))


def bind_in_order(
    sql: str, args: Sequence[Any], named: Mapping[str, Any]
) -> tuple[str, tuple[Any, ...]]:
    """The same for SQLite's driver: a text with ``?``, and their values."""
    parsed = _parsed(sql, "sqlite")
    return parsed.sql, _in_order(parsed, sql, _given(parsed, sql, args, named))


def bind_many(
    backend: str, sql: str, rows: Iterable[Given]
) -> tuple[TextClause, list[dict[str, Any]]]:
    """As `bind`, for many sets of parameters: sequences for ``$1``, mappings for ``:name``."""
    parsed = _parsed(sql, backend)
    return parsed.clause, [_by_name(parsed, sql, each) for each in _rows(parsed, sql, rows)]


def bind_many_in_order(sql: str, rows: Iterable[Given]) -> tuple[str, list[tuple[Any, ...]]]:
    """As `bind_in_order`, for many sets of parameters."""
    parsed = _parsed(sql, "sqlite")
    return parsed.sql, [_in_order(parsed, sql, each) for each in _rows(parsed, sql, rows)]


def _given(parsed: _Parsed, sql: str, args: Sequence[Any], named: Mapping[str, Any]) -> Given:
    """The arguments to use: positional ones, one mapping, or keywords."""
    if not parsed.names:
        if named:
            raise ArgumentError(f"{sql!r} has no placeholder {_list(named)}")
        return args
    if len(args) == 1 and isinstance(args[0], Mapping) and not named:
        return args[0]
    if args:
        raise ArgumentError(
            f"{sql!r} has the placeholders {_list(parsed.names)}: pass keyword arguments or one "
            f"mapping, not {len(args)} positional arguments"
        )
    unknown = named.keys() - parsed.names
    if unknown:
        raise ArgumentError(f"{sql!r} has no placeholder {_list(unknown)}")
    return named


def _rows(parsed: _Parsed, sql: str, rows: Iterable[Given]) -> Iterator[Given]:
    for row in rows:
        wrong = isinstance(row, (str, bytes)) or not hasattr(row, "__len__")
        if wrong or isinstance(row, Mapping) != bool(parsed.names):
            wanted = f"mappings for {_list(parsed.names)}" if parsed.names else "sequences for $1"
            raise ArgumentError(f"{sql!r} takes {wanted}, not {row!r}")
        yield row


def _by_name(parsed: _Parsed, sql: str, given: Given) -> dict[str, Any]:
    if parsed.names:
        return _named(parsed, sql, given)
    return {f"p{number}": value for number, value in enumerate(_checked(parsed, sql, given), 1)}


def _in_order(parsed: _Parsed, sql: str, given: Given) -> tuple[Any, ...]:
    if parsed.names:
        values = _named(parsed, sql, given)
        return tuple(values[name] for name in parsed.keys)
    values = _checked(parsed, sql, given)
    if parsed.indexes is None:
        return tuple(values)
    return tuple(values[index] for index in parsed.indexes)


def _named(parsed: _Parsed, sql: str, given: Any) -> dict[str, Any]:
    missing = parsed.names - given.keys()
    if missing:
        raise ArgumentError(f"{sql!r} has the placeholder {_list(missing)}, but no value for it")
    return {name: given[name] for name in parsed.names}


def _checked(parsed: _Parsed, sql: str, given: Any) -> Any:
    """The positional arguments, if their number is right."""
    if len(given) != parsed.positions:
        raise ArgumentError(
            f"{sql!r} takes {parsed.positions} positional arguments ($1, $2, ...), but "
            f"{len(given)} were given"
        )
    return given


def _list(names: Iterable[str]) -> str:
    return ", ".join(f":{name}" for name in sorted(names))


def _parsed(sql: Any, backend: str) -> _Parsed:
    """A parsed text, from the cache. A very long text is parsed each time."""
    if not isinstance(sql, str):
        raise ArgumentError(
            f"the SQL must be a string, not {sql!r}; run SQLAlchemy expressions on pool.engine"
        )
    return (_parse if len(sql) <= LONG else _parse.__wrapped__)(sql, backend)


@lru_cache(maxsize=1_000)
def _parse(sql: str, backend: str) -> _Parsed:
    """Find the placeholders. All other colons are escaped for `text`."""
    control = _CONTROL.match(sql)
    if control:
        raise InvalidRequestError(
            f"{control[1]!r} was not run: use transaction() to begin and end transactions on a pool"
        )
    positions: set[int] = set()
    names: set[str] = set()
    keys: list[str] = []
    escaped: list[str] = []
    plain: list[str] = []
    at = 0
    pattern = _pattern(backend)
    while match := pattern.search(sql, at):
        before = sql[at : match.start()]
        escaped.append(before)
        plain.append(_ESCAPED.sub(r"\1", before))
        at = match.end()
        token = match[0]
        if match["nesting"]:
            at = _comment_end(sql, at)
            token = sql[match.start() : at]
        if match["position"] or match["name"]:
            if match["name"]:
                names.add(match["name"])
            else:
                positions.add(int(match["position"]))
            key = match["name"] or f"p{match['position']}"
            keys.append(key)
            # `text` does not accept a placeholder right after a colon ([1:$1])
            space = " " if sql[: match.start()].endswith(":") else ""
            escaped.append(f"{space}:{key}")
            plain.append(f"{space}?")
        else:
            escaped.append(token.replace(":", r"\:"))
            plain.append(token)
    escaped.append(sql[at:])
    plain.append(_ESCAPED.sub(r"\1", sql[at:]))
    if positions and names:
        raise ArgumentError(
            f"{sql!r} has both ${min(positions)} and {_list(names)}: use one kind of placeholder. "
            r"Write '\:' for a colon that is not a placeholder"
        )
    if 0 in positions:
        raise ArgumentError(f"{sql!r} has $0, but placeholders start at $1")
    highest = max(positions, default=0)
    indexes = tuple(int(key[1:]) - 1 for key in keys) if positions else ()
    straight = indexes == tuple(range(highest))
    return _Parsed(
        text("".join(escaped)),
        "".join(plain),
        tuple(keys),
        highest,
        frozenset(names),
        None if straight else indexes,
    )


def _comment_end(sql: str, at: int) -> int:
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, at):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)
