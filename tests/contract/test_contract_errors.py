"""Errors that come from the application's own code while a statement runs."""

from __future__ import annotations

from typing import Any

import pytest
from contract_tables import Counter
from sqlalchemy import Integer, TypeDecorator, bindparam, select
from sqlalchemy.exc import StatementError

from qsession import QSession
from qsession.session.maker import SessionMaker


class Refusing(TypeDecorator[int]):
    """A type of the application's own that knows no value."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        raise KeyError(value)


@pytest.mark.parametrize("number", [1213, 1792, 1053])
async def test_a_number_in_an_error_of_the_application_is_no_code(
    maker: SessionMaker, number: int
) -> None:
    """Not a conflict that is run again, no refused write, no lost server: its own error."""
    attempts = []

    async def work(s: QSession) -> None:
        attempts.append(1)
        assert await s.get(Counter, 1) is not None
        await s.execute(select(bindparam("key", number, type_=Refusing())))

    with pytest.raises(StatementError, match=f"KeyError.*{number}") as caught:
        await maker.run(work)
    assert "connection" not in str(caught.value)
    assert len(attempts) == 1
