"""Dashboard: a page that shows who writes, who waits, and how fast it goes, while it happens.

It is a pure ASGI application, which needs no framework. Mount it into FastAPI, Starlette or
Litestar, or run ``python -m qsession.ext.dashboard app.db``.
"""

from qsession.ext.dashboard.app import Dashboard

__all__ = ["Dashboard"]
