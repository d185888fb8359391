"""SQLite under SQLAlchemy's synchronous engine: the asyncio one, called from threads that wait.

There is no second queue, and no second transaction: each class here is one of the asyncio engine
whose methods are sent to the loop in the background.
"""
