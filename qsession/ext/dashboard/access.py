"""Who may look: those who know the password, those whom the application lets in, or this machine.

Without either of the first two, the dashboard answers only a program on the same machine. All signs
that somebody else asks are looked for, because each alone can be missing:

- The address of the client, and the one at which the request came in.
- The ``Host`` header. A web page elsewhere can have its own name resolve to this machine, and then
  ask in the browser of somebody who sits here (DNS rebinding). The browser still sends that name.
- Headers that proxies add. Behind a proxy on this machine, every client seems to be here.
- What a browser says of the connection itself, and a proxy does not hand on. A browser speaks at
  least HTTP/1.1, and sends ``Connection: keep-alive`` with that. nginx up to 1.29.6 speaks HTTP/1.0
  with what it forwards to, and later ones send no such header.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from inspect import isawaitable
from ipaddress import IPv6Address, ip_address
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Auth: TypeAlias = Callable[[Scope], "bool | Awaitable[bool]"]

SHORTEST = 12
"""Characters of a password. There is no limit to how often somebody may guess."""
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>[0-9a-z.-]+))(?::[0-9]{1,5})?")
_PROXIES = ("forwarded", "via", "cdn-loop", "true-client-ip", "cf-connecting-ip")


class Access:
    """The rule of one dashboard: a password, a function, all, or this machine only."""

    def __init__(self, password: str | None, auth: Auth | None, public: bool) -> None:
        if (password is not None) + (auth is not None) + public > 1:
            raise ValueError("give one of password=, auth= and public=True")
        if password is not None and len(password) < SHORTEST:
            raise ValueError(f"the password has fewer than {SHORTEST} characters")
        self._password = password
        self._auth = auth
        self._public = public

    async def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the reason with which a request is refused; None if it is answered.

        What ``auth`` raises is raised. Anything but True from it refuses.
        """
        if _from_another_site(scope):
            return 403, "Another web site asked for this, not the page itself."
        if self._public:
            return None
        if self._password is not None:
            if _knows(scope, self._password):
                return None
            return 401, "This dashboard needs its password. The name of the user does not matter."
        if self._auth is not None:
            allowed = self._auth(scope)
            if isawaitable(allowed):
                allowed = await allowed
            return None if allowed is True else (403, "The application does not let you in.")
        reason = why_not_local(scope)
        return None if reason is None else (403, reason)


def why_not_local(scope: Scope) -> str | None:
    """What tells that a request does not come from this machine; None if nothing does."""
    for side, words in (("client", "came from"), ("server", "was sent to")):
        address = scope.get(side)
        if not address or not is_loopback(str(address[0])):
            at = address[0] if address and address[0] else "an unknown address"
            return f"The request {words} {at}."
    for name, _ in scope["headers"]:
        known = name.decode("latin-1").lower()
        if known in _PROXIES or known.startswith(("x-forwarded", "x-real-", "x-original-")):
            return f"The request came through a proxy: it has the header {known}."
    version = scope.get("http_version")
    if version == "1.0":
        return "The request used HTTP/1.0, as a proxy does."
    if version == "1.1" and _values(scope, b"connection") != ["keep-alive"]:
        return "The request has no header Connection: keep-alive, as if it came through a proxy."
    hosts = _values(scope, b"host")
    if len(hosts) != 1 or not _is_local_name(hosts[0].lower()):
        return f"The request asked for the host {', '.join(hosts) or 'without a name'}."
    return None


def is_loopback(address: str) -> bool:
    """Whether an IP address is this machine's own; False for a name."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_loopback


def _is_local_name(host: str) -> bool:
    """Whether a ``Host`` header, with or without a port, names this machine."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    return is_loopback(found["v6"] or found["name"]) or found["name"] == "localhost"


def _from_another_site(scope: Scope) -> bool:
    """Whether a browser says that a page of another site asks, other than by a link to the page."""
    sites, modes = _values(scope, b"sec-fetch-site"), _values(scope, b"sec-fetch-mode")
    return bool({"cross-site", "same-site"} & set(sites)) and modes != ["navigate"]


def _knows(scope: Scope, password: str) -> bool:
    """Whether the request has the password, by HTTP Basic (RFC 7617)."""
    for value in _values(scope, b"authorization"):
        scheme, _, encoded = value.partition(" ")
        try:
            told = b64decode(encoded.strip(), validate=True)
        except ValueError:
            continue
        _, colon, given = told.partition(b":")
        if scheme.lower() == "basic" and colon:
            return hmac.compare_digest(given, password.encode())
    return False


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]
