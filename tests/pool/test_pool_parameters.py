"""Placeholders in SQL text: which are filled, and that the rest arrives as it was written."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy.dialects.mysql import asyncmy
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.dialects.sqlite import aiosqlite
from sqlalchemy.exc import ArgumentError, InvalidRequestError

from qsession.pool.parameters import (
    LONG,
    _parse,
    bind,
    bind_in_order,
    bind_many,
    bind_many_in_order,
)

DIALECTS = {
    "sqlite": aiosqlite.dialect(),
    "postgresql": asyncpg.dialect(),
    "mysql": asyncmy.dialect(),
}


def sent(backend: str, sql: str, *args: object, **named: object) -> str:
    """The statement as the driver gets it."""
    clause, _ = bind(backend, sql, args, named)
    return str(clause.compile(dialect=DIALECTS[backend]))


QUOTED = {
    "sqlite": ["'$1 :a '' :b'", '"$1 "" :a"', "`$1 :a`", "[$1 :a]", "-- $1 :a\n", "/* $1 :a */"],
    "postgresql": [
        "'$1 :a '' :b'",
        "'a\\'",
        r"E'\' :a $1'",
        '"$1 "" :a"',
        "$$ $1 ' :a $$",
        "$x$ :a $$ $1 $x$",
        "-- $1 :a\n",
        "/* /* $1 */ :a */",
    ],
    "mysql": [r"'\' $1 :a'", r'"\" $1 :a"', "`$1 :a`", "# $1 :a\n", "-- $1 :a\n", "/* $1 :a */"],
}


@pytest.mark.parametrize(
    ("backend", "quoted"), [(each, text) for each, texts in QUOTED.items() for text in texts]
)
def test_nothing_inside_of_quotes_is_a_placeholder(backend: str, quoted: str) -> None:
    """Strings, quoted identifiers and comments of each database stay what they are."""
    mark = {"sqlite": "?", "postgresql": "$1", "mysql": "%s"}[backend]
    assert sent(backend, f"SELECT {quoted} = $1", 5) == f"SELECT {quoted} = {mark}"
    assert sent(backend, f"SELECT :x, {quoted}", x=5) == f"SELECT {mark}, {quoted}"
    assert sent(backend, f"SELECT {quoted}") == f"SELECT {quoted}"


@pytest.mark.parametrize(
    ("sql", "arguments", "expected"),
    [
        ("SELECT $1::int, x::text", (1,), "SELECT $1::int, x::text"),
        ("SELECT a[1:$1], a[$1:2]", (1,), "SELECT a[1: $1], a[$1:2]"),
        ("SELECT name$1, $1", (1,), "SELECT name$1, $1"),
        ("SELECT a - -$1, $2, $1", (1, 2), "SELECT a - -$1, $2, $1"),
        ("SELECT data ? 'a', x ?| $1", (1,), "SELECT data ? 'a', x ?| $1"),
        (r"SELECT a[\:n], $1", (1,), "SELECT a[:n], $1"),
    ],
)
def test_what_is_like_a_placeholder(sql: str, arguments: tuple[int, ...], expected: str) -> None:
    """Casts, slices, names with a dollar and operators with a question mark are left alone."""
    assert sent("postgresql", sql, *arguments) == expected


def test_databases_like_postgresql() -> None:
    """A dialect that is not known by name has PostgreSQL's quotes."""
    clause, _ = bind("cockroachdb", "SELECT $$ $1 $$, $1::int", (1,), {})
    assert str(clause.compile(dialect=DIALECTS["postgresql"])) == "SELECT $$ $1 $$, $1::int"


def test_names_before_a_cast() -> None:
    """A name is taken whole, where SQLAlchemy's text() would cut it short before a cast."""
    assert sent("postgresql", "SELECT :name::int, :名", name=1, 名=2) == "SELECT $1::int, $2"


@pytest.mark.parametrize(
    ("sql", "arguments", "named", "told"),
    [
        ("SELECT $2", (1,), {}, "takes 2 positional arguments .*, but 1 were given"),
        ("SELECT $1", (), {}, "takes 1 positional arguments"),
        ("SELECT 1", (1,), {}, "takes 0 positional arguments"),
        ("SELECT $1", (), {"a": 1}, "has no placeholder :a"),
        ("SELECT :a, :b", (), {"b": 1}, "has the placeholder :a, but no value"),
        ("SELECT :a", ({"b": 1},), {}, "has the placeholder :a, but no value"),
        ("SELECT :a", (), {"a": 1, "timeout": 2}, "has no placeholder :timeout"),
        ("SELECT :a, :b", (1, 2), {}, "keyword arguments or one mapping"),
        ("SELECT $1, :a", (1,), {}, "both"),
        ("SELECT $0", (), {}, "start at"),
    ],
)
def test_what_does_not_fit(
    sql: str, arguments: tuple[object, ...], named: dict[str, object], told: str
) -> None:
    """Text and arguments that do not fit together are an error that says what is missing."""
    with pytest.raises(ArgumentError, match=told):
        bind("sqlite", sql, arguments, named)


def test_a_mapping_can_be_a_value() -> None:
    """For a positional placeholder a mapping is a value like any other."""
    assert bind("sqlite", "SELECT $1", ({"a": 1},), {})[1] == {"p1": {"a": 1}}


@pytest.mark.parametrize(
    ("sql", "row"),
    [
        ("VALUES ($1)", "a"),
        ("VALUES ($1)", 1),
        ("VALUES ($1)", {"p1": 1}),
        ("VALUES (:a)", (1,)),
        ("VALUES ($1)", ()),
    ],
)
def test_rows_that_do_not_fit(sql: str, row: object) -> None:
    """executemany takes sequences for positional placeholders and mappings for named ones."""
    with pytest.raises(ArgumentError, match="takes"):
        bind_many("sqlite", sql, [row])


@given(st.sampled_from(sorted(DIALECTS)), st.text("ax1 :$'\"`[]\\/*-#\n%?E", max_size=30))
def test_text_without_placeholders_arrives_as_it_is(backend: str, sql: str) -> None:
    """Whatever it is made of, only an escaped colon loses its backslash."""
    try:
        clause, _ = bind(backend, sql, (), {})
    except (ArgumentError, InvalidRequestError):
        return  # it has placeholders, or begins a transaction
    arrived = str(clause.compile(dialect=DIALECTS[backend]))
    if backend == "mysql":
        arrived = arrived.replace("%%", "%")
    assert arrived in (sql, sql.replace(r"\:", ":")) or "\\:" in sql


@given(st.text("a1 :$'\"`[]\\/*-#\n?p", max_size=30))
def test_sqlite_gets_the_same_text_without_sqlalchemy(sql: str) -> None:
    """The text with ``?`` is what SQLAlchemy would have made of it, for the same parameters.

    A backslash before ``$1`` is no SQL. SQLAlchemy takes it for the escape of what stands behind.
    """
    assume(r"\$" not in sql)
    given_ = range(100, 200)
    try:
        _, named = bind("sqlite", sql, (), {name: name for name in "apx"})
    except (ArgumentError, InvalidRequestError):
        named = {}
    highest = max((int(n) for n in re.findall(r"\$(\d{1,2})(?!\d)", sql)), default=0)
    for args, kw in ((tuple(given_[:highest]), {}), ((), named), ((), {})):
        try:
            clause, values = bind("sqlite", sql, args, kw)
        except (ArgumentError, InvalidRequestError) as error:
            with pytest.raises(type(error), match=re.escape(str(error))):
                bind_in_order(sql, args, kw)
            continue
        compiled = clause.compile(dialect=DIALECTS["sqlite"])
        text, ordered = bind_in_order(sql, args, kw)
        assert text == str(compiled)
        assert ordered == tuple(values[key] for key in compiled.positiontup or ())


@pytest.mark.parametrize(
    ("sql", "args", "named", "expected"),
    [
        ("VALUES ($1, $2)", (5, 6), {}, ("VALUES (?, ?)", (5, 6))),
        ("VALUES ($2, $1, $2)", (5, 6), {}, ("VALUES (?, ?, ?)", (6, 5, 6))),
        ("VALUES (:b, :a, :b)", (), {"a": 1, "b": 2}, ("VALUES (?, ?, ?)", (2, 1, 2))),
        ("VALUES (:a)", ({"a": 1, "c": 3},), {}, ("VALUES (?)", (1,))),
        ("SELECT ':a', $1", (5,), {}, ("SELECT ':a', ?", (5,))),
    ],
)
def test_parameters_in_order(
    sql: str, args: tuple[object, ...], named: dict[str, object], expected: tuple[str, object]
) -> None:
    """Each placeholder gets its value, however often and in whatever order they come."""
    assert bind_in_order(sql, args, named) == expected
    row: Any = named or (args[0] if isinstance(args[0], dict) else args)
    text, values = expected
    assert bind_many_in_order(sql, [row, row]) == (text, [values, values])


def test_long_texts_are_not_kept() -> None:
    """A thousand texts of a megabyte would stay in memory for ever."""
    kept = _parse.cache_info().currsize
    assert bind_in_order(f"SELECT $1 -- {'x' * LONG}", (1,), {})[1] == (1,)
    assert _parse.cache_info().currsize == kept
