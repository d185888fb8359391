"""How commits reach the disk: shared fsyncs and checkpoints.

`syncer.Syncer` and `checkpoint.Checkpointer`, one of each for a file.
"""
