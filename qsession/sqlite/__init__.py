"""SQLite under qsession: what SQLAlchemy sees of it, and below that a folder for each concern."""
