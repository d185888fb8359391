"""SQLite under qsession: routing, the one writer, transactions that can be replayed."""
