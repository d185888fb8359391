"""A project with migrations of its own, for the tests of migrations."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic.config import Config
from plain_rows import dump

from qsession.commands.init import init

REVISION = """
import asyncio
import sqlalchemy as sa
from alembic import op
from sqlalchemy.util import await_only
revision = "{number:04}"
down_revision = {before!r}
def upgrade():
    {up}
def downgrade():
    pass
"""

FAMILY = """
    op.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT)")
    op.execute("CREATE TABLE child (id INTEGER PRIMARY KEY,"
               " parent_id INTEGER REFERENCES parent (id) ON DELETE CASCADE)")
    op.execute("INSERT INTO parent VALUES (1, 'Ann')")
    op.execute("INSERT INTO child VALUES (10, 1)")
"""

REBUILD_PARENT = """
    with op.batch_alter_table("parent", recreate="always") as batch:
        batch.add_column(sa.Column("age", sa.Integer()))
"""


class Project:
    """A folder with an alembic.ini, its migrations, and the path of its database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "app.db"
        self.url = f"sqlite+aiosqlite:///{self.file}"
        init(folder, url=self.url, models="qsession:Base")
        self.config = Config(folder / "alembic.ini")
        self.count = 0

    def add(self, up: str) -> None:
        """Write the next revision, with the body of its `upgrade`."""
        before = f"{self.count:04}" if self.count else None
        self.count += 1
        body = REVISION.format(number=self.count, before=before, up=up.strip())
        (self.folder / "migrations" / "versions" / f"{self.count:04}.py").write_text(body)

    def dump(self, file: Path | None = None) -> list[str]:
        """Schema and rows."""
        return dump(file or self.file)

    def execute(self, *statements: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.file)) as outside:
            rows = [row for statement in statements for row in outside.execute(statement)]
            outside.commit()
            return rows
