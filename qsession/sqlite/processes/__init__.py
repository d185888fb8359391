"""Several processes on one file: turns, locks, forks, and what `qsession who` is told.

`turn.FileTurn` is the turn of one engine; `owners` says who holds a lock.
"""
