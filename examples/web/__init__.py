"""A shopping list on the web, for several people at once: see README.md."""
