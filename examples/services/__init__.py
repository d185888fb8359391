"""Five processes on one database file: see README.md."""
