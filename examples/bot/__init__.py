"""A bot for a group chat that splits expenses: python -m examples.bot. See its README."""
