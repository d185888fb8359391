"""Money in cents: reading it, splitting it, and who pays whom in the end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

AMOUNT = re.compile(r"\s*(\d{1,7})(?:[.,](\d{1,2}))?(?:\s+(.*))?", re.DOTALL)


def read(text: str) -> tuple[int, str] | None:
    """The cents and the purpose in "12.50 pizza"; None if it does not begin with an amount."""
    found = AMOUNT.fullmatch(text)
    if found is None:
        return None
    cents = int(found[1]) * 100 + int((found[2] or "0").ljust(2, "0"))
    return (cents, (found[3] or "something").strip()[:200]) if cents else None


def shares(cents: int, members: Sequence[int], payer: int) -> dict[int, int]:
    """What an expense changes in the balance of each member. It adds up to 0.

    Cents that cannot be split go to the first members.
    """
    each, rest = divmod(cents, len(members))
    changes = {member: -each - (number < rest) for number, member in enumerate(members)}
    changes[payer] += cents
    return changes


def settlement(balances: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """Payments after which all balances are 0: who, to whom, how many cents."""
    payments = []
    left = dict(balances)
    while any(left.values()):
        debtor = min(left, key=lambda member: left[member])
        creditor = max(left, key=lambda member: left[member])
        cents = min(-left[debtor], left[creditor])
        payments.append((debtor, creditor, cents))
        left[debtor] += cents
        left[creditor] -= cents
    return payments


def money(cents: int) -> str:
    """As people write it."""
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02d}"
