"""Starlette: the database in an application's life, a session for a request, errors as HTTP."""

from qsession.ext.starlette.lifespan import Lifespan
from qsession.ext.starlette.middleware import QSessionMiddleware
from qsession.ext.starlette.session import request_session

__all__ = ["Lifespan", "QSessionMiddleware", "request_session"]
