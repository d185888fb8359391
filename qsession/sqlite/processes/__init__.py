"""Several processes on one file: turns, locks, forks, and the data for `qsession who`.

`turn.FileTurn` is the turn of one engine; `owners` tells which process holds a lock.
"""
