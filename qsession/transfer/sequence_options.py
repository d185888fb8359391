"""How sequences of PostgreSQL count: their steps, bounds and first numbers."""

from __future__ import annotations

from sqlalchemy import Connection, MetaData, Table, text

_OPTIONS = "qsession_sequences"
"""In ``Table.info``: :func:`options_of`."""
_SEQUENCES = text(
    """
    SELECT seqrelid::regclass::text,
        format(
            'AS %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s%s',
            seqtypid::regtype, seqincrement, seqmin, seqmax, seqstart, seqcache,
            CASE WHEN seqcycle THEN ' CYCLE' ELSE '' END
        ),
        seqincrement = 1 AND seqmin = 1 AND seqstart = 1 AND seqcache = 1 AND NOT seqcycle
            AND seqmax = CASE seqtypid::regtype::text WHEN 'smallint' THEN 32767
                WHEN 'integer' THEN 2147483647 ELSE 9223372036854775807 END
    FROM pg_sequence
    """
)


def reflect_sequences(connection: Connection, metadata: MetaData) -> None:
    """Note in each table of PostgreSQL how the sequences of the database count."""
    if connection.dialect.name != "postgresql":
        return
    found = {name: (how, usual) for name, how, usual in connection.execute(_SEQUENCES)}
    for table in metadata.tables.values():
        table.info[_OPTIONS] = found


def options_of(table: Table) -> dict[str, tuple[str, bool]]:
    """By the name in ``nextval()``: how a sequence counts, and if it does so as ``serial`` does."""
    found: dict[str, tuple[str, bool]] = table.info.get(_OPTIONS, {})
    return found
