"""`qsession copy --follow`: a copy that takes up what changes meanwhile, and a switch to it.

`run.follow` does it all. `capture` is what takes changes down in the source, `changes` brings the
target to the state of a snapshot.
"""
