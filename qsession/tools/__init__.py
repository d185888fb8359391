"""Tools for a database file that is in use: backup and doctor."""
