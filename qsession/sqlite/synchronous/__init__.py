"""SQLite under SQLAlchemy's synchronous engine, which uses the asyncio engine in the background.

There is no second queue and no second kind of transaction. Each class here extends a class of the
asyncio engine, and runs its methods on a loop in the background while the calling thread waits.
"""
