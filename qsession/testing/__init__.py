"""Tools for tests of applications: throw-away databases, other programs, slow disks, cancellation.

They need no test framework. The fixtures for pytest are in the module `pytest_qsession`.
"""

from qsession.testing.cancelling import When, cancel_at, cancel_at_every_await
from qsession.testing.databases import copy_database, create_database, database_url
from qsession.testing.disk import Disk, HeldDisk, HeldSync, held_disk, slow_disk
from qsession.testing.loops import OtherLoop
from qsession.testing.outside import assert_free, settled
from qsession.testing.programs import Program, foreign_writer
from qsession.testing.rollback import rolled_back

__all__ = [
    "Disk",
    "HeldDisk",
    "HeldSync",
    "OtherLoop",
    "Program",
    "When",
    "assert_free",
    "cancel_at",
    "cancel_at_every_await",
    "copy_database",
    "create_database",
    "database_url",
    "foreign_writer",
    "held_disk",
    "rolled_back",
    "settled",
    "slow_disk",
]
