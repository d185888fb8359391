"""Copying a database to another one, of any kind: `copy`, and what it tells and returns."""

from .events import Progress, Report, Stage, TableReport
from .problems import Problem, Problems
from .run import copy

__all__ = ["Problem", "Problems", "Progress", "Report", "Stage", "TableReport", "copy"]
