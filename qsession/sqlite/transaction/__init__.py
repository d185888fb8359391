"""Transactions: the kinds of statements, what they need, what they read, and how they end.

`decide.decide` says what a statement needs, and `transaction.Transaction` does it.
"""
