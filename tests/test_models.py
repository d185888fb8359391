"""The declarative base: every constraint gets a name, the same on every database."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qsession.models import NAMING_CONVENTION, Base


class Own(DeclarativeBase):
    """A base of the application's own, with the same convention, so that tests share no tables."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Author(Own):
    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    first: Mapped[str] = mapped_column(unique=True)
    last: Mapped[str] = mapped_column(index=True)
    age: Mapped[int]
    mentor_id: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))

    __table_args__ = (
        UniqueConstraint("first", "last"),
        CheckConstraint("age >= 0", name="positive_age"),
    )


def test_every_constraint_has_a_name() -> None:
    """Each kind of constraint and index is named after its table and columns."""
    table = Author.metadata.tables["authors"]
    assert {str(each.name) for each in table.constraints} == {
        "pk_authors",
        "uq_authors_first",
        "uq_authors_first_last",
        "ck_authors_positive_age",
        "fk_authors_mentor_id_authors",
    }
    assert {each.name for each in table.indexes} == {"ix_authors_last"}


def test_base_uses_the_convention() -> None:
    """Models built on Base get these names without further ado."""
    assert Base.metadata.naming_convention == NAMING_CONVENTION
