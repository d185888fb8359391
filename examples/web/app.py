"""The application. Its parts are put together here, and nowhere else."""

from __future__ import annotations

import os

from fastapi import FastAPI

from examples.web import live, routes
from qsession import Base, qsession
from qsession.ext.dashboard import Dashboard
from qsession.ext.fastapi import Lifespan, QSessionMiddleware

app = FastAPI(title="Shopping list", lifespan=Lifespan(tables=Base.metadata))
app.add_middleware(QSessionMiddleware)
app.include_router(routes.router)
app.include_router(live.router)

# Only for this machine, unless there is a password.
password = os.environ.get("SHOPPING_PASSWORD") or None
app.mount("/qsession", Dashboard(lambda: qsession.engine, password=password))
