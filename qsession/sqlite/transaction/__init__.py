"""A transaction: what its statements are, what they need, what they read, and how it ends.

`decide.decide` says what a statement needs, and `transaction.Transaction` does it.
"""
