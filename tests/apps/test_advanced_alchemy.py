"""advanced-alchemy: a repository service, its bulk methods, and get_or_upsert."""

from __future__ import annotations

from advanced_alchemy.base import BigIntBase
from advanced_alchemy.config import SQLAlchemyAsyncConfig
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from advanced_alchemy.service import SQLAlchemyAsyncRepositoryService
from conftest import File, together
from sqlalchemy import Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

TIMES = 200


class Page(BigIntBase):
    """A page and how often it was read."""

    __tablename__ = "page"
    __table_args__ = (UniqueConstraint("name"),)

    name: Mapped[str] = mapped_column(String(50))
    reads: Mapped[int] = mapped_column(Integer, default=0)


class Pages(SQLAlchemyAsyncRepositoryService[Page]):
    """The service of an application."""

    class Repo(SQLAlchemyAsyncRepository[Page]):
        model_type = Page

    repository_type = Repo


async def test_nothing_is_lost_between_a_read_and_its_write(file: File) -> None:
    """Two hundred read-modify-writes of ten rows; a conflict is run again, as its users do."""
    config = SQLAlchemyAsyncConfig(connection_string=file.url)
    engine = config.get_engine()
    async with engine.begin() as connection:
        await connection.run_sync(Page.metadata.create_all)
    async with config.get_session() as session:
        await Pages(session).create_many(
            [{"name": f"page {number}", "reads": 0} for number in range(10)], auto_commit=True
        )

    async def read(number: int) -> None:
        async with config.get_session() as session:
            pages = Pages(session)
            page = await pages.get_one(name=f"page {number % 10}", with_for_update=True)
            page.reads += 1
            await pages.update(page, auto_commit=True)

    await together(read, TIMES)
    await engine.dispose()
    assert file.rows("SELECT count(*), sum(reads) FROM page") == [(10, TIMES)]
    assert file.rows("SELECT DISTINCT reads FROM page") == [(TIMES // 10,)]


async def test_get_or_upsert_at_once_makes_one_row_each(file: File) -> None:
    """Forty tasks want the same four rows, which are not there yet."""
    config = SQLAlchemyAsyncConfig(connection_string=file.url)
    engine = config.get_engine()
    async with engine.begin() as connection:
        await connection.run_sync(Page.metadata.create_all)

    async def want(number: int) -> int:
        async with config.get_session() as session:
            page, _ = await Pages(session).get_or_upsert(
                match_fields=["name"], name=f"page {number % 4}", auto_commit=True
            )
            return int(page.id)

    ids = await together(want, 40, tasks=40)
    await engine.dispose()
    assert len(set(ids)) == 4
    assert file.rows("SELECT count(*) FROM page") == [(4,)]
