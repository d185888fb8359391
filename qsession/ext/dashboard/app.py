"""The ASGI application: who may ask, for what, and where it is answered."""

from __future__ import annotations

import asyncio
import html
from importlib.resources import files
from urllib.parse import quote
from weakref import WeakKeyDictionary

from qsession.ext.dashboard.access import Access, Auth, Scope
from qsession.ext.dashboard.database import Database, Given
from qsession.ext.dashboard.feed import Feed
from qsession.ext.dashboard.reply import Reply, Send
from qsession.ext.dashboard.stream import Receive, send_stream

_PAGE = files("qsession.ext.dashboard") / "page"
_STYLE = "page.css"
"""All may have it: the page for those who are refused needs it."""
_BASIC = 'Basic realm="qsession", charset="UTF-8"'
_FILES = {
    "": ("page.html", "text/html; charset=utf-8"),
    _STYLE: ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}


class Dashboard:
    """A page about databases, as an ASGI application.

    Each of ``databases`` is an engine of qsession, a function that returns one when somebody looks,
    or the path of a SQLite file. ``interval`` is the time between two looks in seconds; a
    transaction that holds the ticket for ``slow`` seconds or longer is listed.

    Statements, tasks and lines of the application are shown, so not everybody may look:

    - By default, only requests from this machine are answered; all others get 403.
    - ``password``, of 12 characters or more: asked for by HTTP Basic. Use it with TLS.
    - ``auth`` gets the ASGI scope of each request, and returns or resolves to True for those who
      may look. What it raises is raised.
    - ``public=True``: all requests are answered. For an application that lets through only those
      who may look.

    Raises ``ValueError`` for more than one of these, a short password, or no database;
    `sqlalchemy.exc.InvalidRequestError` for an engine that is not qsession's.

    Nothing is done while nobody looks. A client that goes away, or a request that is cancelled,
    leaves nothing behind; the last one leaves a task that ends after ten seconds.
    """

    def __init__(
        self,
        *databases: Given,
        password: str | None = None,
        auth: Auth | None = None,
        public: bool = False,
        interval: float = 1.0,
        slow: float = 0.1,
    ) -> None:
        if not databases:
            raise ValueError("give the dashboard an engine, or the path of a file")
        if not 0.1 <= interval <= 60:
            raise ValueError("interval= is from 0.1 to 60 seconds")
        self._access = Access(password, auth, public)
        self._databases, self._interval, self._slow = databases, interval, slow
        self._make()  # raises for an engine that cannot be shown
        self._feeds: WeakKeyDictionary[asyncio.AbstractEventLoop, Feed] = WeakKeyDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. As an application of its own it takes part in the lifespan, too."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(scope, send)
        name = _name(scope)
        if name is None:
            # The names in the page are relative to a folder.
            last = _address(scope).rpartition("/")[2]
            await reply.whole(307, b"", headers={"location": f"./{last}/"})
        elif name != _STYLE and (refused := await self._access.refusal(scope)) is not None:
            await _refuse(reply, *refused, is_page=not name)
        elif scope["method"] not in ("GET", "HEAD"):
            await reply.whole(405, b"Only GET.\n", headers={"allow": "GET, HEAD"})
        elif name in _FILES:
            file, kind = _FILES[name]
            await reply.whole(200, (_PAGE / file).read_bytes(), kind)
        elif name == "state.json":
            await self._state(reply)
        elif name == "stream":
            await send_stream(self._feed, reply, receive)
        else:
            await reply.whole(404, b"There is no such page.\n")

    def _make(self) -> Feed:
        return Feed([Database(each) for each in self._databases], self._interval, self._slow)

    @property
    def _feed(self) -> Feed:
        """The feed of the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._feeds:
            self._feeds[loop] = self._make()
        return self._feeds[loop]

    async def _state(self, reply: Reply) -> None:
        feed = self._feed
        with feed.watch():
            await feed.newer(feed.version if not feed.state else -1)
        if feed.state:
            await reply.whole(200, feed.state, "application/json")
        else:
            await reply.whole(503, b"The server stops.\n")


async def _live(receive: Receive, send: Send) -> None:
    """Take part in the lifespan: there is nothing to open or to close."""
    while True:
        phase = (await receive())["type"]
        await send({"type": f"{phase}.complete"})
        if phase == "lifespan.shutdown":
            return


def _name(scope: Scope) -> str | None:
    """What is asked for below the place where this is mounted; None for the place without "/".

    Starlette leaves the place in ``path``, as ASGI says. Litestar takes it off, and adds a "/".
    """
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    inside = path[len(root) :] if path == root or path.startswith(f"{root}/") else path
    if not inside.strip("/") and not _address(scope).endswith("/"):
        return None
    return inside.strip("/")


def _address(scope: Scope) -> str:
    """The path as the client has sent it."""
    raw: bytes = scope.get("raw_path") or b""
    return raw.partition(b"?")[0].decode("latin-1") or quote(scope["path"])


async def _refuse(reply: Reply, status: int, reason: str, is_page: bool) -> None:
    headers = {} if status != 401 else {"www-authenticate": _BASIC}
    if not is_page:
        await reply.whole(status, f"{reason}\n".encode(), headers=headers)
        return
    page = (_PAGE / "refused.html").read_text(encoding="utf-8")
    page = page.replace("{reason}", html.escape(reason))
    await reply.whole(status, page.encode(), "text/html; charset=utf-8", headers)
