"""Dates, times, timestamps and intervals: from what a database keeps to what another one takes."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any, NamedTuple

from qsession.transfer.kinds import Wanted
from qsession.transfer.wording import name_of

EPOCH = datetime.combine(date(1970, 1, 1), time())
"""SQLAlchemy keeps an interval as a timestamp this far from it, where there is no such type."""
INFINITE = ("infinity", "-infinity")
"""Dates and timestamps of PostgreSQL that Python has nothing like."""
_DAY = timedelta(days=1)
_SECOND = 10**6

_DATE = r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d+))?)?"
_ZONE = r"(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?"
_TIMESTAMP = re.compile(rf"{_DATE}(?:[ T]{_TIME} ?{_ZONE})?", re.ASCII)
_TIME_ALONE = re.compile(_TIME, re.ASCII)
_PERIOD = re.compile(  # ISO 8601, as PostgreSQL writes it with intervalstyle = iso_8601
    r"P(?:(?P<years>-?\d+)Y)?(?:(?P<months>-?\d+)M)?(?:(?P<days>-?\d+)D)?"
    r"(?:T(?:(?P<hours>-?\d+)H)?(?:(?P<minutes>-?\d+)M)?(?:(?P<seconds>-?\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)


class Unfit(Exception):
    """A value that a column cannot take without losing something; the text says what."""


class Period(NamedTuple):
    """An interval of PostgreSQL: a month has no fixed number of days there, nor a day of hours."""

    months: int
    days: int
    microseconds: int

    def __str__(self) -> str:
        seconds, fraction = divmod(abs(self.microseconds), _SECOND)
        minutes, second = divmod(seconds, 60)
        hours, minute = divmod(minutes, 60)
        clock = f"{'-' if self.microseconds < 0 else '+'}{hours}:{minute:02}:{second:02}"
        return f"{self.months} mons {self.days} days {clock}.{fraction:06}"


def to_timestamp(value: Any, takes: Wanted) -> datetime | str:
    """A point in time for a column with time zone, the time on the wall for one without."""
    if value in INFINITE:
        return _infinite(value, takes)
    if isinstance(value, datetime):
        found = value
    elif isinstance(value, date):
        found = datetime.combine(value, time())
    elif isinstance(value, str):
        found = parse_timestamp(value)
    elif isinstance(value, int | float):
        raise Unfit("a number in a column of timestamps: nothing says from when it counts")
    else:
        raise Unfit(f"{name_of(value)} in a column of timestamps")
    _check_digits(found.microsecond, takes)
    if takes.aware == (found.tzinfo is not None):
        return found
    if takes.zone is None:
        if takes.aware:
            raise Unfit("a timestamp without a time zone: say which one was meant (--zone)")
        raise Unfit("a timestamp with a time zone: say which one the column is in (--zone)")
    return _with_zone(found, takes.zone) if takes.aware else _without_zone(found, takes.zone)


def to_date(value: Any, takes: Wanted) -> date | str:
    """A date; a timestamp is one if it is at midnight."""
    if value in INFINITE:
        return _infinite(value, takes)
    if isinstance(value, str):
        value = parse_timestamp(value)
    if isinstance(value, datetime):
        if value.time() != time.min or value.tzinfo is not None:
            raise Unfit("a timestamp in a column of dates")
        return value.date()
    if isinstance(value, date):
        return value
    if isinstance(value, int | float):
        raise Unfit("a number in a column of dates: nothing says from when it counts")
    raise Unfit(f"{name_of(value)} in a column of dates")


def _infinite(value: str, takes: Wanted) -> str:
    if not takes.infinity:
        raise Unfit("infinity, which the database does not know")
    return value


def to_time(value: Any, takes: Wanted) -> time:
    """The time of a day. MySQL's driver gives the time since midnight."""
    if isinstance(value, timedelta):
        if not timedelta(0) <= value < _DAY:
            raise Unfit("not within one day")
        value = (EPOCH + value).time()
    elif isinstance(value, str):
        match = _TIME_ALONE.fullmatch(value)
        if match is None:
            raise Unfit("not a time of day")
        value = _timestamp_of(match, 1970, 1, 1).time()
    if not isinstance(value, time):
        raise Unfit("not a time of day")
    if value.tzinfo is not None:
        raise Unfit("a time with a time zone")
    _check_digits(value.microsecond, takes)
    return value


def to_interval(value: Any, takes: Wanted) -> timedelta | Period:
    """A length of time; a timestamp is one as SQLAlchemy keeps it, counted from 1970.

    Between two databases of PostgreSQL it stays as it is, in months, days and what is less.
    """
    if isinstance(value, str) and value.startswith("P"):
        value = _parse_period(value)
    elif isinstance(value, str):
        value = parse_timestamp(value)
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            raise Unfit("a timestamp with a time zone in a column of intervals")
        value -= EPOCH
    if isinstance(value, timedelta):
        value = Period(0, value.days, value.seconds * _SECOND + value.microseconds)
    if not isinstance(value, Period):
        raise Unfit("not an interval")
    _check_digits(value.microseconds, takes)
    return value if takes.parts else _length_of(value)


def _length_of(period: Period) -> timedelta:
    if period.months:
        raise Unfit("an interval of months or years, which have no fixed length")
    try:
        return timedelta(days=period.days, microseconds=period.microseconds)
    except OverflowError:
        raise Unfit("an interval that is too long") from None


def _check_digits(microsecond: int, takes: Wanted) -> None:
    if microsecond % 10 ** (6 - takes.digits):
        raise Unfit(f"more than {takes.digits} digits of the fraction of a second")


def parse_timestamp(text: str) -> datetime:
    if len(text) in (19, 22, 26, 29) and text[4] == text[7] == "-" and text[10] in " T":
        try:
            return datetime.fromisoformat(text)  # the usual form, ten times as fast
        except ValueError:
            pass
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise Unfit("not a date or timestamp in ISO 8601, of the years 1 to 9999")
    return _timestamp_of(match, int(match["year"]), int(match["month"]), int(match["day"]))


def _timestamp_of(match: re.Match[str], year: int, month: int, day: int) -> datetime:
    part = match.groupdict()
    fraction = part["fraction"] or ""
    if fraction[6:].strip("0"):
        raise Unfit("a fraction of a second with more than 6 digits")
    hour, minute, second = (int(part[name] or 0) for name in ("hour", "minute", "second"))
    microsecond = int(fraction[:6].ljust(6, "0"))
    try:
        clock = time(hour, minute, second, microsecond, _parse_zone(part.get("zone")))
        return datetime.combine(date(year, month, day), clock)
    except ValueError:
        raise Unfit("a date or time that does not exist") from None


def _parse_zone(text: str | None) -> tzinfo | None:
    if text is None:
        return None
    if text == "Z":
        return timezone.utc
    size = timedelta(hours=int(text[1:3]), minutes=int(text[3:].lstrip(":") or 0))
    return timezone(-size if text[0] == "-" else size)


def _parse_period(text: str) -> Period:
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise Unfit("not an interval")
    part = match.groupdict()
    seconds, _, fraction = (part["seconds"] or "0").partition(".")
    microseconds = int(fraction.ljust(6, "0")) * (-1 if seconds.startswith("-") else 1)
    years, months, days, hours, minutes = (
        int(part[name] or 0) for name in ("years", "months", "days", "hours", "minutes")
    )
    whole = hours * 3600 + minutes * 60 + int(seconds)
    return Period(years * 12 + months, days, whole * _SECOND + microseconds)


def _with_zone(wall: datetime, zone: tzinfo) -> datetime:
    first, second = (wall.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    if first.utcoffset() != second.utcoffset():
        raise Unfit("a time that the change of clocks in that zone skips or repeats")
    try:
        return first.astimezone(timezone.utc)
    except OverflowError:
        raise Unfit("out of the range of timestamps in UTC") from None


def _without_zone(moment: datetime, zone: tzinfo) -> datetime:
    try:
        wall = moment.astimezone(zone).replace(tzinfo=None, fold=0)
    except OverflowError:
        raise Unfit("out of the range of timestamps in that zone") from None
    _with_zone(wall, zone)  # there must be a way back
    return wall
