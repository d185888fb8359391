"""Copying a database to another one, of any kind: `copy`, and what it tells and returns."""

from qsession.copying import copy
from qsession.errors import Problem
from qsession.transfer.events import Progress, Report, Stage, TableReport
from qsession.transfer.problems import Problems

__all__ = ["Problem", "Problems", "Progress", "Report", "Stage", "TableReport", "copy"]
