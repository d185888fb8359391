"""Tools for a file that is in use: backup and doctor."""
