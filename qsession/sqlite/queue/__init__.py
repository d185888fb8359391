"""The write queue of an engine: who may write next, and who is in the way of others.

`write_queue.WriteQueue` is what transactions ask; the others are its parts.
"""
