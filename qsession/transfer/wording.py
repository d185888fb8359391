"""How messages name things: numbers of them, databases, and what a driver says of an error."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from qsession import urls
from qsession.errors import QSessionError
from qsession.servers.failures import code_of
from qsession.sqlite.files.read_only import path_of

_REASON = 500
"""Characters that are shown of what a database says."""
_REFUSED = "42501"
"""insufficient_privilege of PostgreSQL."""
_RIGHTS = (
    "A copy needs SELECT on the tables and sequences of the source. In the target it needs SELECT, "
    "INSERT and UPDATE on the tables, SELECT and UPDATE on their sequences, CREATE on the schema "
    "if tables are missing or with --resume, TRUNCATE with --replace, and it has to own tables "
    "that refer to themselves or to each other in a circle"
)
_DUPLICATE = 1062
"""ER_DUP_ENTRY of MySQL and MariaDB."""
_COLLATIONS = (
    "Texts that differ in the source may be equal to the collation of the target, such as 'A' and "
    "'a'. Create the table there first, with a binary collation: COLLATE utf8mb4_nopad_bin on "
    "MariaDB, utf8mb4_0900_bin on MySQL"
)
_PRODUCTS = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}

_EXTRAS = {"asyncpg": "postgres", "psycopg": "psycopg", "asyncmy": "mysql"}
"""The extra that brings each driver."""


def counted(number: int, noun: str) -> str:
    """``1 row``, ``1,234 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def name_of(value: Any) -> str:
    """What a value is, whatever it says."""
    names = {str: "text", bytes: "a blob", float: "a float", int: "an integer", bool: "a boolean"}
    return names.get(type(value), f"a {type(value).__name__}")


def product_of(dialect: Dialect) -> str:
    """The name of a database. MariaDB has the dialect of MySQL, and says who it is when asked."""
    if getattr(dialect, "is_mariadb", False):
        return "MariaDB"
    return _PRODUCTS.get(dialect.name, "MySQL")


def place_of(connection: AsyncConnection) -> str:
    """Which database a connection leads to: ``MariaDB at db.example.com``."""
    url = connection.engine.url
    if connection.dialect.name == "sqlite":
        return f"the file {path_of(url.database or '')!r}"
    return urls.place_of(url.set(drivername=product_of(connection.dialect).lower()))


def reason_of(error: BaseException) -> str:
    """What a database says, without the statement and its parameters; and the rights to ask for."""
    ours = isinstance(error, QSessionError)
    said = (isinstance(error, DBAPIError) and not ours and error.orig) or error
    text = str(said)
    if len(said.args) == 2 and isinstance(said.args[0], int) and not isinstance(said, OSError):
        text = f"{said.args[1]} (error {said.args[0]})"  # of a driver of MySQL
        text = text.replace("MySQL server", "the server")  # which may be MariaDB
    if isinstance(said, ModuleNotFoundError) and said.name in _EXTRAS:
        text = f"{text}. Install the driver: pip install 'qsession[{_EXTRAS[said.name]}]'"
    text = " ".join(text.split()) or type(said).__name__
    text = text if len(text) <= _REASON else f"{text[:_REASON]}..."
    code = code_of(said)
    if code == _DUPLICATE:
        return f"{text}. {_COLLATIONS}"
    refused = code == _REFUSED and "row-level security" not in text
    return f"{text}. {_RIGHTS}" if refused else text
