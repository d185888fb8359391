"""Takes orders over HTTP. An order that was answered is in the file."""

from __future__ import annotations

import os

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy import select

from examples.services.models import Order, Summary
from qsession import qsession
from qsession.ext.dashboard import Dashboard
from qsession.ext.fastapi import Lifespan, QSessionMiddleware, SessionDep

app = FastAPI(title="Orders", lifespan=Lifespan())
app.add_middleware(QSessionMiddleware)
app.mount("/qsession", Dashboard(lambda: qsession.engine))


class NewOrder(BaseModel):
    """What a customer sends."""

    customer: str = Field(min_length=1, max_length=100)
    item: str = Field(min_length=1, max_length=100)
    cents: int = Field(gt=0, le=10**9)


@app.post("/orders", status_code=201)
async def order(new: NewOrder, s: SessionDep) -> dict[str, int]:
    order = Order(**new.model_dump())
    s.add(order)
    await s.flush()
    return {"number": order.id}


@app.get("/orders/{number}")
async def show(number: int, s: SessionDep) -> dict[str, str]:
    order = await s.get(Order, number)
    if order is None:
        raise HTTPException(404, "There is no such order.")
    return {"item": order.item, "state": order.state}


@app.get("/summaries")
async def summaries(s: SessionDep) -> list[dict[str, int]]:
    last = select(Summary).order_by(Summary.id.desc()).limit(10)
    return [{"invoices": day.invoices, "cents": day.cents} for day in await s.scalars(last)]


if __name__ == "__main__":
    listening = int(os.environ["LISTENING"])
    uvicorn.run(app, fd=listening, log_level="warning", timeout_graceful_shutdown=10)
