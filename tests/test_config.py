"""Settings: one frozen object that checks itself."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from sqlalchemy.exc import ArgumentError

from qsession.config import NAMES, Settings, check_options, check_spelling

GOOD = [
    ("access", "read", "read"),
    ("durability", "normal", "normal"),
    ("durability", "strict", "strict"),
    ("reads", "snapshot", "snapshot"),
    ("reads", "latest", "latest"),
    ("queue_timeout", "1.5", 1.5),
    ("queue_timeout", 0, 0.0),
    ("queue_timeout", float("inf"), float("inf")),
    ("max_waiting", "10", 10),
    ("max_waiting", 0, 0),
    ("max_waiting", None, None),
    ("max_waiting", "off", None),
    ("max_waiting", 3.0, 3),
    ("stall_after", "0.1", 0.1),
    ("checkpoints", "external", "external"),
    ("checkpoints", "own", "own"),
    ("warn_after", 2, 2.0),
    ("max_hold", "None", None),
    ("max_hold", "", None),
    ("max_hold", "3", 3.0),
]

BAD = [
    ("access", "Read", "one of 'read', 'write', 'auto'"),
    ("access", None, "one of 'read', 'write', 'auto'"),
    ("access", ["read"], "one of 'read', 'write', 'auto'"),
    ("durability", "fast", "one of 'full', 'normal', 'strict'"),
    ("checkpoints", "none", "one of 'own', 'external'"),
    ("reads", "newest", "one of 'latest', 'snapshot'"),
    ("queue_timeout", -1, "a number of seconds, 0 or more"),
    ("queue_timeout", "soon", "a number of seconds, 0 or more"),
    ("queue_timeout", None, "a number of seconds, 0 or more"),
    ("queue_timeout", True, "a number of seconds, 0 or more"),
    ("queue_timeout", float("nan"), "a number of seconds, 0 or more"),
    ("max_waiting", -1, "a whole number, 0 or more, or None for no limit"),
    ("max_waiting", 1.5, "a whole number, 0 or more, or None for no limit"),
    ("max_waiting", True, "a whole number, 0 or more, or None for no limit"),
    ("max_waiting", "many", "a whole number, 0 or more, or None for no limit"),
    ("max_hold", -0.1, "a number of seconds, 0 or more, or None for no limit"),
    ("max_hold", False, "a number of seconds, 0 or more, or None for no limit"),
]


@pytest.mark.parametrize(("name", "given", "kept"), GOOD)
def test_values_are_taken_from_python_and_from_texts(name: str, given: Any, kept: Any) -> None:
    """A keyword and a URL parameter with the same meaning are kept as the same value."""
    value = getattr(Settings(**{name: given}), name)
    assert value == kept
    assert type(value) is type(kept)


@pytest.mark.parametrize(("name", "given", "allowed"), BAD)
def test_what_is_not_allowed_is_named(name: str, given: Any, allowed: str) -> None:
    """The error names the setting, the value, and what is allowed."""
    with pytest.raises(ArgumentError) as caught:
        Settings(**{name: given})
    assert str(caught.value) == f"{name}={given!r} is not allowed: {allowed}"


def test_every_setting_is_checked() -> None:
    """No value is taken as it comes: each setting refuses what makes no sense."""
    assert tuple(field.name for field in fields(Settings)) == NAMES
    for name in NAMES:
        with pytest.raises(ArgumentError, match=f"^{name}="):
            Settings(**{name: object()})


def test_settings_are_frozen_and_changed_by_copying() -> None:
    """with_options leaves the original as it was."""
    settings = Settings()
    changed = settings.with_options({"access": "read", "queue_timeout": "5"})
    assert (changed.access, changed.queue_timeout) == ("read", 5.0)
    assert settings == Settings()
    assert settings.with_options({}) is settings
    with pytest.raises(FrozenInstanceError):
        settings.access = "read"  # type: ignore[misc]


def test_an_unknown_name_is_refused() -> None:
    """A misspelt setting is an error that lists those there are."""
    with pytest.raises(ArgumentError, match="'queue_time' is not a setting of qsession"):
        Settings().with_options({"queue_time": 1})


@pytest.mark.parametrize("name", ["queue_timout", "max_wating", "Access", "acess", "durabilty"])
def test_a_parameter_of_a_url_that_looks_like_a_setting_is_refused(name: str) -> None:
    """It would have no effect, and SQLAlchemy 2.0 does not even warn."""
    with pytest.raises(ArgumentError, match=f"'{name}' is not a setting of qsession"):
        check_spelling(["timeout", name])


def test_parameters_of_sqlite_are_left_alone() -> None:
    """Those of the driver, those of SQLite (https://sqlite.org/uri.html), and of others."""
    check_spelling(["uri", "timeout", "isolation_level", "detect_types", "cached_statements"])
    check_spelling(["check_same_thread", "mode", "cache", "vfs", "immutable", "nolock", "psow"])
    check_spelling(["modeof", "key", "_timeout", "_busy_timeout", "_journal_mode", "synchronous"])


def test_names_of_other_packages_are_no_options_of_ours() -> None:
    """Only what begins as ours is looked at."""
    check_options(("compiled_cache", "isolation_level", "_sa_orm_load_options", "access"))
    check_options(("qsession_access", "qsession_reads", "qsession_priority", "qsession_isolation"))
    for _ in range(2):  # names are cached, and refused again all the same
        with pytest.raises(ArgumentError, match="'qsession_acces' is not an execution option"):
            check_options(("compiled_cache", "qsession_acces"))
