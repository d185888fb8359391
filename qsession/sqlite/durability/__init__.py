"""What brings commits to the disk: one fsync for many of them, and checkpoints.

`syncer.Syncer` and `checkpoint.Checkpointer`, each one for a file.
"""
