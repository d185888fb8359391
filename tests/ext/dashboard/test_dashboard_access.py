"""Who may look: what tells that a request is not from this machine, passwords and functions."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest

from qsession.ext.dashboard.access import Access, is_loopback, why_not_local

LOCAL: dict[str, Any] = {
    "type": "http",
    "http_version": "1.1",
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 8000),
    "headers": [(b"host", b"localhost:8000"), (b"connection", b"keep-alive")],
}
PASSWORD = "correct horse battery"


def headers(*more: tuple[str, str], host: str = "localhost:8000") -> dict[str, Any]:
    """A local request with more headers."""
    every = [("host", host), ("connection", "keep-alive"), *more]
    return {"headers": [(name.encode(), value.encode("latin-1")) for name, value in every]}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"client": ("::1", 5), "server": ("::1", 80)},
        {"client": ("::ffff:127.0.0.1", 5), "server": ("::ffff:127.0.0.1", 80)},
        {"client": ("127.3.2.1", 5)},
        headers(host="LOCALHOST"),
        headers(host="127.0.0.1"),
        headers(host="[::1]:8000"),
        headers(host="[::1]"),
        headers(host=" localhost "),
        headers(("accept", "*/*"), ("user-agent", "curl")),
        {"http_version": "2", "headers": [(b"host", b"localhost")]},
    ],
)
def test_a_request_of_this_machine_is_local(changed: dict[str, Any]) -> None:
    """By any address and name that can only be this machine."""
    assert why_not_local({**LOCAL, **changed}) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"client": ("203.0.113.9", 5)}, "came from 203.0.113.9"),
        ({"client": ("::ffff:203.0.113.9", 5)}, "came from"),
        ({"client": ("testclient", 5)}, "came from testclient"),
        ({"client": ("localhost", 5)}, "came from localhost"),
        ({"client": ("0.0.0.0", 5)}, "came from"),
        ({"client": ("", 0)}, "an unknown address"),
        ({"client": None}, "an unknown address"),
        ({"server": ("192.0.2.1", 80)}, "was sent to 192.0.2.1"),
        ({"server": ("/run/app.sock", None)}, "was sent to"),
        ({"server": None}, "was sent to"),
        ({"http_version": "1.0"}, "HTTP/1.0"),
        ({"headers": [(b"connection", b"keep-alive")]}, "without a name"),
        ({"headers": [(b"host", b"127.0.0.1:8000")]}, "no header Connection: keep-alive"),
        (headers(("connection", "keep-alive")), "no header Connection: keep-alive"),
        ({"headers": [(b"host", b"localhost"), (b"connection", b"close")]}, "keep-alive"),
        ({"headers": [(b"host", b"localhost"), (b"connection", b"Keep-Alive")]}, "keep-alive"),
        (headers(host="attacker.example"), "attacker.example"),
        (headers(host="attacker.example:8000"), "attacker.example"),
        (headers(host="localhost.attacker.example"), "attacker.example"),
        (headers(host="127.0.0.1.attacker.example"), "attacker.example"),
        (headers(host="localhost@attacker.example"), "attacker.example"),
        (headers(host="attacker.example#localhost"), "attacker.example"),
        (headers(host="localhost:80:80"), "localhost:80:80"),
        (headers(host="[::1]attacker.example"), "attacker.example"),
        (headers(host=""), "asked for the host"),
        (headers(("host", "attacker.example")), "localhost:8000, attacker.example"),
        (headers(("x-forwarded-for", "127.0.0.1")), "x-forwarded-for"),
        (headers(("X-Forwarded-Host", "localhost")), "x-forwarded-host"),
        (headers(("x-real-ip", "127.0.0.1")), "x-real-ip"),
        (headers(("forwarded", "for=127.0.0.1")), "forwarded"),
        (headers(("via", "1.1 proxy")), "via"),
        (headers(("cf-connecting-ip", "127.0.0.1")), "cf-connecting-ip"),
    ],
)
def test_each_sign_alone_shows_that_it_is_not(changed: dict[str, Any], words: str) -> None:
    """The reason names the sign."""
    reason = why_not_local({**LOCAL, **changed})
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize("address", ["", "localhost", "1", "127.1", "fe80::1%lo", "::", "10.0.0.1"])
def test_only_an_address_of_the_loopback_is_one(address: str) -> None:
    """Neither names nor short forms count."""
    assert not is_loopback(address)


def basic(told: bytes, scheme: str = "Basic") -> dict[str, Any]:
    """A request from elsewhere with these credentials."""
    value = f"{scheme} {b64encode(told).decode()}"
    return {**LOCAL, "client": ("203.0.113.9", 1), **headers(("authorization", value))}


@pytest.mark.parametrize("told", [b"me:" + PASSWORD.encode(), b":" + PASSWORD.encode()])
async def test_the_password_lets_in_from_anywhere(told: bytes) -> None:
    """Under any name, and whatever the case of the scheme."""
    access = Access(PASSWORD, None, False)
    assert await access.refusal(basic(told)) is None
    assert await access.refusal(basic(told, "basic")) is None


@pytest.mark.parametrize(
    "scope",
    [
        LOCAL,
        basic(PASSWORD.encode()),
        basic(b"me:"),
        basic(b"me:" + PASSWORD.encode() + b" "),
        basic(b"me:" + PASSWORD.encode(), "Bearer"),
        {**LOCAL, **headers(("authorization", "Basic ###"))},
        {**LOCAL, **headers(("authorization", "Basic"))},
        {**LOCAL, **headers(("authorization", "Basic \xff"))},
    ],
)
async def test_without_the_password_it_is_asked_for(scope: dict[str, Any]) -> None:
    """Also on this machine: another user of it may be somebody else."""
    refused = await Access(PASSWORD, None, False).refusal(scope)
    assert refused is not None
    assert refused[0] == 401


async def test_a_password_with_a_colon_and_other_letters() -> None:
    """Only the first colon separates it from the name; it is sent in UTF-8."""
    access = Access("Straße: überall", None, False)
    assert await access.refusal(basic("me:Straße: überall".encode())) is None


@pytest.mark.parametrize("answer", [False, None, 1, "yes", object()])
async def test_only_true_lets_in(answer: Any) -> None:
    """A function that returns a response, a user or nothing has not said yes."""

    async def later(scope: Any) -> Any:
        return answer

    for auth in (lambda scope: answer, later):
        refused = await Access(None, auth, False).refusal(LOCAL)
        assert refused is not None
        assert refused[0] == 403


async def test_a_function_decides_by_the_scope() -> None:
    """A plain one and a coroutine; what it raises is raised."""

    async def later(scope: Any) -> bool:
        return bool(scope["user"] == "admin")

    def raises(scope: Any) -> bool:
        raise LookupError("no session")

    scope = {**LOCAL, "client": ("203.0.113.9", 1), "user": "admin"}
    assert await Access(None, later, False).refusal(scope) is None
    assert await Access(None, lambda scope: scope["user"] == "admin", False).refusal(scope) is None
    assert await Access(None, later, False).refusal({**scope, "user": "guest"}) is not None
    with pytest.raises(LookupError):
        await Access(None, raises, False).refusal(scope)


@pytest.mark.parametrize(
    ("site", "mode", "refused"),
    [
        ("cross-site", "cors", True),
        ("cross-site", "no-cors", True),
        ("same-site", "cors", True),
        ("cross-site", "navigate", False),
        ("same-origin", "cors", False),
        ("none", "navigate", False),
    ],
)
async def test_a_page_of_another_site_gets_nothing(site: str, mode: str, refused: bool) -> None:
    """A link to the page works; its figures are for the page itself, even if all may look."""
    scope = {**LOCAL, **headers(("sec-fetch-site", site), ("sec-fetch-mode", mode))}
    assert (await Access(None, None, True).refusal(scope) is not None) is refused


@pytest.mark.parametrize(
    "given",
    [("", None, False), ("short", None, False), (PASSWORD, None, True), (PASSWORD, print, False),
     (None, print, True)],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(given: tuple[Any, Any, bool]) -> None:
    """A password that is empty, as of a variable that is not set, does not open the door."""
    with pytest.raises(ValueError, match="password"):
        Access(*given)
