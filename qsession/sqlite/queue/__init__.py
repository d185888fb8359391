"""The write queue of an engine: which transaction may write next, and when a holder is in the way.

Transactions use `write_queue.WriteQueue`; the other modules are its parts.
"""
