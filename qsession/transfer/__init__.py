"""Copying a database to another one, of any kind: `copy`, and what it tells and returns."""

from ..copying import copy
from .events import Progress, Report, Stage, TableReport
from .problems import Problem, Problems

__all__ = ["Problem", "Problems", "Progress", "Report", "Stage", "TableReport", "copy"]
