"""One value from one kind of database to another: exactly, or not at all."""

from __future__ import annotations

import json
import math
import uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, types
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.mysql import asyncmy
from sqlalchemy.dialects.postgresql import asyncpg

from qsession.transfer.digest import Digest
from qsession.transfer.kinds import Kind, Wanted, kind_of, wanted
from qsession.transfer.values import Unfit, converter
from qsession.transfer.writing import encoded

POSTGRESQL, MYSQL, SQLITE = asyncpg.dialect(), asyncmy.dialect(), sqlite.dialect()
BERLIN = ZoneInfo("Europe/Berlin")
AWARE = Wanted(Kind.TIMESTAMP, aware=True)

FITS = [
    (Kind.BOOLEAN, 1, True),
    (Kind.BOOLEAN, 0.0, False),
    (Kind.BOOLEAN, "TRUE", True),
    (Kind.BOOLEAN, "f", False),
    (Kind.BOOLEAN, b"\1", True),
    (Kind.INTEGER, True, 1),
    (Kind.INTEGER, 5.0, 5),
    (Kind.INTEGER, "-17", -17),
    (Kind.INTEGER, Decimal("3.00"), 3),
    (Kind.FLOAT, 3, 3.0),
    (Kind.FLOAT, "0.1", 0.1),
    (Kind.FLOAT, Decimal("0.1"), 0.1),
    (Kind.NUMERIC, 0.1, Decimal("0.1")),
    (Kind.NUMERIC, "12.50", Decimal("12.50")),
    (Kind.TEXT, 7, "7"),
    (Kind.TEXT, 0.5, "0.5"),
    (Kind.TEXT, date(2024, 1, 2), "2024-01-02"),
    (Kind.BYTES, "é", "é".encode()),
    (Kind.BYTES, memoryview(b"x"), b"x"),
    (Kind.DATE, "2024-01-02", date(2024, 1, 2)),
    (Kind.DATE, "2024-01-02 00:00:00", date(2024, 1, 2)),
    (Kind.TIME, "10:11", time(10, 11)),
    (Kind.TIME, timedelta(hours=3), time(3)),
    (Kind.TIMESTAMP, "2024-01-02", datetime.fromisoformat("2024-01-02")),
    (Kind.TIMESTAMP, "2024-01-02T03:04", datetime.fromisoformat("2024-01-02 03:04")),
    (Kind.TIMESTAMP, "2024-01-02 03:04:05.6", datetime.fromisoformat("2024-01-02 03:04:05.600")),
    (
        Kind.TIMESTAMP,
        "2024-01-02 03:04:05.6000000",
        datetime.fromisoformat("2024-01-02 03:04:05.600"),
    ),
    (Kind.INTERVAL, "1970-01-02 00:00:01", timedelta(days=1, seconds=1)),
    (Kind.INTERVAL, "P-1DT2H-3M-4.5S", timedelta(days=-1, hours=2, minutes=-3, seconds=-4.5)),
    (Kind.JSON, 5, "5"),
    (Kind.JSON, '{"a":1}', '{"a":1}'),
    (Kind.UUID, "0123456789abcdef0123456789ABCDEF", uuid.UUID("0123456789abcdef0123456789abcdef")),
    (Kind.UUID, b"\0" * 16, uuid.UUID(int=0)),
    (Kind.ENUM, "red", "red"),
]


@pytest.mark.parametrize(("kind", "value", "expected"), FITS)
def test_what_sqlite_keeps_loosely_is_converted(kind, value, expected):
    """A value in another type that says the same becomes what the column holds."""
    found = converter(Wanted(kind))(value)
    assert found == expected
    assert type(found) is type(expected)


DOES_NOT_FIT = [
    (Wanted(Kind.BOOLEAN), 2, "neither true nor false"),
    (Wanted(Kind.BOOLEAN), "maybe", "neither true nor false"),
    (Wanted(Kind.INTEGER, bounds=(-(2**31), 2**31 - 1)), 2**31, "out of the range"),
    (Wanted(Kind.INTEGER), 1.5, "with a fraction"),
    (Wanted(Kind.INTEGER), math.inf, "with a fraction"),
    (Wanted(Kind.INTEGER), 2.0**60, "several integers"),
    (Wanted(Kind.INTEGER), "twelve", "text in a column of integers"),
    (Wanted(Kind.INTEGER), "007", "text in a column of integers"),
    (Wanted(Kind.FLOAT), 2**53 + 1, "more digits"),
    (Wanted(Kind.FLOAT), "1e999", "more digits"),
    (Wanted(Kind.FLOAT), "wide", "text in a column of floats"),
    (Wanted(Kind.FLOAT, single=True), 0.1, "32 bits"),
    (Wanted(Kind.FLOAT, nan=False), math.nan, "NaN"),
    (Wanted(Kind.FLOAT, infinity=False), -math.inf, "infinity"),
    (Wanted(Kind.NUMERIC, precision=5, scale=2), 1000, "3 digits before the point"),
    (Wanted(Kind.NUMERIC, precision=5, scale=2), "1.005", "2 digits after the point"),
    (Wanted(Kind.NUMERIC, precision=5, scale=2), 1.005, "2 digits after the point"),
    (Wanted(Kind.NUMERIC), math.nan, "infinity or NaN"),
    (Wanted(Kind.NUMERIC, binary=True), Decimal("0.12345678901234567890"), "15"),
    (Wanted(Kind.TEXT, length=3), "four", "longer than 3 characters"),
    (Wanted(Kind.TEXT, length=3, in_bytes=True), "éé", "longer than 3 bytes"),
    (Wanted(Kind.TEXT, nul=False), "a\0b", "NUL"),
    (Wanted(Kind.TEXT), "a\udcffb", "UTF-8"),
    (Wanted(Kind.TEXT), b"blob", "a blob in a column of text"),
    (Wanted(Kind.BYTES), 5, "an integer in a column of blobs"),
    (Wanted(Kind.BYTES, length=1), b"ab", "longer than 1 bytes"),
    (Wanted(Kind.BYTES, length=3, fixed=True), b"ab", "pad it"),
    (Wanted(Kind.DATE), "2024-02-30", "does not exist"),
    (Wanted(Kind.DATE), "2024-01-02 03:00:00", "a timestamp in a column of dates"),
    (Wanted(Kind.TIME), "25:00", "does not exist"),
    (Wanted(Kind.TIME), timedelta(days=2), "not within one day"),
    (Wanted(Kind.TIMESTAMP), 1700000000, "from when it counts"),
    (Wanted(Kind.TIMESTAMP), "yesterday", "not a date or timestamp"),
    (Wanted(Kind.TIMESTAMP), "0000-00-00 00:00:00", "does not exist"),
    (Wanted(Kind.TIMESTAMP), "2024-01-02 03:04:05.1234567", "6 digits"),
    (Wanted(Kind.TIMESTAMP, digits=0), "2024-01-02 03:04:05.5", "0 digits"),
    (Wanted(Kind.TIMESTAMP), "2024-01-02 03:04:05+02:00", "with a time zone"),
    (AWARE, "2024-01-02 03:04:05", "without a time zone"),
    (Wanted(Kind.TIMESTAMP, aware=True, zone=BERLIN), "2024-03-31 02:30:00", "change of clocks"),
    (Wanted(Kind.TIMESTAMP, aware=True, zone=BERLIN), "2024-10-27 02:30:00", "change of clocks"),
    (Wanted(Kind.TIMESTAMP, zone=BERLIN), "2024-10-27 00:30:00Z", "change of clocks"),
    (Wanted(Kind.INTERVAL), "P1M", "months or years"),
    (Wanted(Kind.JSON), "{'a': 1}", "not JSON"),
    (Wanted(Kind.JSON), '{"a": NaN}', "not JSON"),
    (Wanted(Kind.JSON, nul=False), r'"\u0000"', "NUL"),
    (Wanted(Kind.JSON, nul=False), r'"\ud800"', "half of a surrogate pair"),
    (Wanted(Kind.UUID), "not-a-uuid", "not a UUID"),
    (Wanted(Kind.ENUM, labels=("red", "green")), "blue", "not one of the labels red, green"),
    (Wanted(Kind.TEXT, nullable=False), None, "NULL"),
]


@pytest.mark.parametrize(("takes", "value", "reason"), DOES_NOT_FIT)
def test_what_would_lose_something_is_refused(takes, value, reason):
    """It is not rounded, cut or guessed at; the reason is said, and does not hold the value."""
    with pytest.raises(Unfit, match=reason.replace("(", r"\(")):
        converter(takes)(value)


def test_zones():
    """A named zone decides what a timestamp without one means, and back."""
    there = Wanted(Kind.TIMESTAMP, aware=True, zone=BERLIN)
    back = Wanted(Kind.TIMESTAMP, zone=BERLIN)
    moment = converter(there)("2024-07-01 12:00:00")
    assert moment == datetime(2024, 7, 1, 10, tzinfo=timezone.utc)
    assert converter(back)(moment) == datetime.fromisoformat("2024-07-01 12:00")
    assert converter(AWARE)("2024-07-01 12:00:00+02:00") == moment


def test_decimals_that_a_float_only_nearly_is():
    """What a float has past its 15th digit is not taken for data where a column keeps two."""
    takes = Wanted(Kind.NUMERIC, precision=10, scale=2)
    assert converter(takes)(0.1 + 0.2) == Decimal("0.3")
    assert converter(takes)(1234.56) == Decimal("1234.56")


NAIVE = st.datetimes()
KINDS = {
    types.Boolean(): st.booleans(),
    types.BigInteger(): st.integers(-(2**63), 2**63 - 1),
    types.Double(): st.floats(allow_nan=False, allow_infinity=False),
    types.Numeric(12, 3): st.decimals(-(10**9) + 1, 10**9 - 1, places=3, allow_nan=False),
    types.Date(): st.dates(),
    types.Time(): st.times(),
    types.DateTime(): NAIVE,
    types.Uuid(): st.uuids(),
    types.Interval(): st.timedeltas(-timedelta(days=700_000), timedelta(days=2_000_000)),
    types.String(): st.text(st.characters(exclude_categories=["Cs"])),
    types.LargeBinary(): st.binary(),
}


@pytest.mark.parametrize("type_", KINDS, ids=repr)
def test_a_value_survives_sqlite(type_):
    """From PostgreSQL to what is written into SQLite and back, each value is the same."""
    column = Column("x", type_)
    here = wanted(column, type_, SQLITE, None)
    there = wanted(column, type_, POSTGRESQL, None)

    @settings(deadline=None)
    @given(KINDS[type_])
    def survives(value):
        try:
            kept = converter(here)(value)
        except Unfit:
            assert here.kind is Kind.NUMERIC  # SQLite keeps 15 digits
            return
        ((written,),) = encoded([(kept,)], [here], "sqlite")
        assert isinstance(written, int | float | str | bytes)
        if there.kind is Kind.TEXT and "\0" in value:
            return
        assert converter(there)(written) == converter(there)(value)

    survives()


@settings(deadline=None)
@given(NAIVE)
def test_timestamps_are_read_as_sqlalchemy_writes_them(value):
    """SQLAlchemy's own format for SQLite, and isoformat(), are both understood."""
    write = types.DateTime().dialect_impl(SQLITE).bind_processor(SQLITE)
    convert = converter(Wanted(Kind.TIMESTAMP))
    assert convert(write(value)) == value
    assert convert(value.isoformat()) == value
    utc = value.replace(tzinfo=timezone.utc)
    assert converter(AWARE)(utc.isoformat()) == utc


SCALARS = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
DECIMALS = st.decimals().filter(lambda value: not value.is_snan())  # which no driver gives
ANYTHING = SCALARS | st.floats() | DECIMALS | st.datetimes() | st.timedeltas() | st.uuids()


@settings(deadline=None)
@given(ANYTHING, st.sampled_from(list(Kind)))
def test_nothing_else_is_raised(value, kind):
    """Whatever is in a column, it is converted or refused; and what was converted stays."""
    convert = converter(Wanted(kind, nul=False))
    try:
        found = convert(value)
    except Unfit:
        return
    again = convert(found)
    assert again == found or (again != again and found != found)


@pytest.mark.parametrize(
    ("dialect", "type_", "expected"),
    [
        (POSTGRESQL, types.Enum("a", "b", name="e"), {"kind": Kind.ENUM, "labels": ("a", "b")}),
        (POSTGRESQL, types.SmallInteger(), {"bounds": (-(2**15), 2**15 - 1)}),
        (POSTGRESQL, types.REAL(), {"single": True}),
        (POSTGRESQL, types.Float(), {"single": False}),
        (POSTGRESQL, types.Double(), {"single": False}),
        (POSTGRESQL, postgresql.JSONB(), {"kind": Kind.JSON, "nul": False}),
        (POSTGRESQL, postgresql.INET(), {"kind": Kind.OTHER}),
        (POSTGRESQL, types.TIMESTAMP(timezone=True), {"aware": True, "digits": 6}),
        (POSTGRESQL, postgresql.TIMESTAMP(precision=3), {"digits": 3}),
        (POSTGRESQL, types.Time(timezone=True), {"kind": Kind.OTHER}),
        (POSTGRESQL, types.Numeric(10), {"precision": 10, "scale": 0}),
        (POSTGRESQL, types.PickleType(), {"kind": Kind.BYTES}),
        (MYSQL, mysql.BIGINT(unsigned=True), {"bounds": (0, 2**64 - 1)}),
        (MYSQL, mysql.TINYINT(1), {"bounds": (-128, 127)}),
        (MYSQL, mysql.FLOAT(), {"single": True}),
        (MYSQL, mysql.DATETIME(), {"digits": 0}),
        (MYSQL, mysql.TIMESTAMP(fsp=6), {"digits": 6, "aware": True}),
        (MYSQL, types.Text(), {"length": 65535, "in_bytes": True}),
        (MYSQL, mysql.MEDIUMTEXT(), {"length": 2**24 - 1}),
        (MYSQL, types.LargeBinary(), {"length": 65535}),
        (MYSQL, types.BINARY(4), {"length": 4, "fixed": True}),
        (SQLITE, types.String(3), {"length": None, "kind": Kind.TEXT}),
        (SQLITE, types.Integer(), {"bounds": (-(2**63), 2**63 - 1)}),
    ],
    ids=lambda value: getattr(value, "name", None) or repr(value),
)
def test_limits_of_columns(dialect, type_, expected):
    """What each database makes of a type."""
    takes = wanted(Column("x", type_), types.NullType(), dialect, None)
    assert {name: getattr(takes, name) for name in expected} == expected


def test_what_the_model_says_of_a_plain_column():
    """CHAR(32) holds UUIDs if the model says so, and text if it does not."""
    column = Column("x", types.CHAR(32))
    assert wanted(column, types.Uuid(), MYSQL, None).kind is Kind.UUID
    assert wanted(column, types.CHAR(32), MYSQL, None).kind is Kind.TEXT
    assert kind_of(types.String().with_variant(types.Integer(), "postgresql"), POSTGRESQL) is (
        Kind.INTEGER
    )


def test_digests_compare_values_and_not_their_form():
    """The same values have one checksum in any order; each other value has another."""
    kinds = [Kind.NUMERIC, Kind.TIMESTAMP, Kind.JSON, Kind.TEXT]
    utc = datetime(2024, 1, 1, tzinfo=timezone.utc)
    berlin = utc.astimezone(BERLIN)

    def digest(*rows):
        found = Digest(kinds)
        found.add(rows)
        return found.rows, found.text

    one = (Decimal("1.50"), utc, '{"a": 1.0, "b": 2}', "x")
    other = (Decimal("1.5"), berlin, '{"b":2,"a":1}', "x")
    two = (Decimal("15E-1"), None, "null", "y")
    assert digest(one, two) == digest(two, other)
    assert digest(one) != digest(two)
    assert digest(one, one) != digest(one)
    assert digest((*one[:2], '{"a": "1", "b": 2}', "x")) != digest(one)
    assert digest((*one[:3], "X")) != digest(one)
    huge = json.dumps({"n": 1})[:-2] + "1e999999999}"
    assert digest((one[0], utc, huge, "x")) != digest(one)
