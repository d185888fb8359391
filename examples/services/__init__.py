"""Two services on one database file."""
