"""SQLite under qsession: the interface for SQLAlchemy, and a folder for each concern below it."""
