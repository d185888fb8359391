"""What a browser calls. Each change is answered by the way back to the list.

The answer is sent when the change is committed, so the list that the browser then asks for has it.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from examples.web import shopping
from examples.web.page import page
from qsession.ext.fastapi import SessionDep

router = APIRouter(default_response_class=HTMLResponse)
LONGEST = 100
MOST = 1000


async def form(request: Request) -> dict[str, str]:
    """The fields of a form, as browsers send it without files. The last one of a name counts."""
    try:
        fields = parse_qs((await request.body()).decode(), max_num_fields=10)
    except ValueError as error:
        raise HTTPException(422, "This is not a form.") from error
    return {name: values[-1].strip() for name, values in fields.items()}


Form = Annotated[dict[str, str], Depends(form)]


def name_in(fields: dict[str, str]) -> str:
    """The name of a thing; 422 if there is none."""
    name = fields.get("name", "")
    if not 0 < len(name) <= LONGEST:
        raise HTTPException(422, f"A name has 1 to {LONGEST} letters.")
    return name


def number_in(fields: dict[str, str], field: str, least: int) -> int:
    """A number of the form, 1 if it is left out; 422 if it is none."""
    text = fields.get(field, "1")
    if not re.fullmatch("-?[0-9]{1,4}", text) or not least <= int(text) <= MOST:
        raise HTTPException(422, f"{field} is a whole number from {least} to {MOST}.")
    return int(text)


def back() -> RedirectResponse:
    return RedirectResponse("/", status_code=303)


@router.get("/")
async def show(s: SessionDep) -> HTMLResponse:
    return HTMLResponse(page(await shopping.things(s)))


@router.post("/things")
async def add(s: SessionDep, fields: Form) -> RedirectResponse:
    await shopping.add(s, name_in(fields), number_in(fields, "amount", 1))
    return back()


@router.post("/things/{number}/change")
async def change(number: int, s: SessionDep, fields: Form) -> RedirectResponse:
    await shopping.change(s, number, number_in(fields, "by", -MOST))
    return back()


@router.post("/things/{number}/rename")
async def rename(number: int, s: SessionDep, fields: Form) -> RedirectResponse:
    await shopping.rename(s, number, name_in(fields))
    return back()


@router.post("/things/{number}/bought")
async def bought(number: int, s: SessionDep) -> RedirectResponse:
    await shopping.tick(s, number, True)
    return back()


@router.post("/things/{number}/needed")
async def needed(number: int, s: SessionDep) -> RedirectResponse:
    await shopping.tick(s, number, False)
    return back()


@router.post("/things/{number}/delete")
async def delete(number: int, s: SessionDep) -> RedirectResponse:
    await shopping.remove(s, number)
    return back()


@router.post("/delete-bought")
async def delete_bought(s: SessionDep) -> RedirectResponse:
    await shopping.remove_bought(s)
    return back()
