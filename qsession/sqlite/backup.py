"""Deprecated: the place of `back_up` in the first release. Use :mod:`qsession.tools.backup`."""

from qsession.tools.backup import BackupError, back_up

__all__ = ["BackupError", "back_up"]
