"""The two programs with which asyncpg's tutorials show how tasks share connections."""
