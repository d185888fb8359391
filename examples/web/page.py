"""The page, as HTML. It works without a script; with one, it shows what others change."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape

from examples.web.models import Thing

STYLE = """
body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: auto; padding: 1rem }
ul { list-style: none; padding: 0 }
li { display: flex; gap: .4rem; align-items: center; padding: .3rem 0; border-top: 1px solid #ddd }
li form.name { flex: 1; display: flex; gap: .4rem }
input { font: inherit; border: 1px solid #ccc; border-radius: .3rem; padding: .3rem; min-width: 0 }
li input { flex: 1; border-color: transparent; background: none }
li input:focus { border-color: #888 }
input.amount { width: 4rem }
.bought input { text-decoration: line-through; color: #777 }
button { font: inherit; padding: .2rem .6rem; border: 1px solid #bbb; border-radius: .3rem }
#live { color: #0a6; visibility: hidden }
footer { color: #666; font-size: .9rem; margin-top: 2rem }
"""

SCRIPT = """
const list = document.getElementById("list"), live = document.getElementById("live");
const source = new EventSource("/live");
source.onopen = () => { live.style.visibility = "visible" };
source.onerror = () => { live.style.visibility = "hidden" };
source.onmessage = (event) => {
  if (list.contains(document.activeElement) && document.activeElement.matches("input")) return;
  list.innerHTML = JSON.parse(event.data);
};
"""


def page(things: Sequence[Thing]) -> str:
    """The whole page."""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Shopping list</title>
<style>{STYLE}</style>
<h1>Shopping list</h1>
<form action="/things" method="post">
<input name="name" placeholder="What is needed?" maxlength="100" required autofocus>
<input name="amount" type="number" value="1" min="1" max="1000" class="amount" aria-label="Amount">
<button>Add</button>
</form>
<div id="list">
{listing(things)}</div>
<footer>Answered by process {os.getpid()}. <span id="live">Live.</span></footer>
<script>{SCRIPT}</script>
</html>
"""


def listing(things: Sequence[Thing]) -> str:
    """The part of the page that changes."""
    bought = sum(thing.bought for thing in things)
    return f"""<ul id="things">
{"".join(map(line, things)) or "<li>Nothing is needed.</li>"}</ul>
{button("/delete-bought", f"Remove what was bought ({bought})") if bought else ""}
"""


def line(thing: Thing) -> str:
    """One thing, and what can be done with it."""
    at = f"/things/{thing.id}"
    tick = button(f"{at}/needed", "↺") if thing.bought else button(f"{at}/bought", "✓")
    return f"""<li id="thing-{thing.id}" class="{"bought" if thing.bought else "needed"}">
{tick}
<form class="name" action="{at}/rename" method="post">
<input name="name" value="{escape(thing.name)}" maxlength="100" required aria-label="Name">
</form>
{button(f"{at}/change", "-", by=-1)}
<b>{thing.amount}</b>
{button(f"{at}/change", "+", by=1)}
{button(f"{at}/delete", "Remove")}
</li>
"""


def button(action: str, text: str, **fields: int) -> str:
    """A form of one button."""
    hidden = "".join(
        f'<input type="hidden" name="{name}" value="{value}">' for name, value in fields.items()
    )
    return f'<form action="{action}" method="post">{hidden}<button>{text}</button></form>'
