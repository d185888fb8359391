"""The dialect as SQLAlchemy's suite uses it: its own greenlets, and engines of create_engine()."""

from __future__ import annotations

from sqlalchemy.engine import URL, Dialect

from qsession.sqlite.dialect import QSessionDialect, SynchronousDialect


class SuiteDialect(QSessionDialect):
    """An application is told to use create_async_engine(); the suite knows what it does."""

    supports_statement_cache = True

    @classmethod
    def get_dialect_cls(cls, url: URL) -> type[Dialect]:
        """The same for every engine, or that of the synchronous one, which has another file."""
        return SynchronousDialect if "synchronous" in str(url.database) else cls
