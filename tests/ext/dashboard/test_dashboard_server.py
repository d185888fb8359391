"""Real servers: shutdown with an open stream, and the dashboard served by itself."""

from __future__ import annotations

import signal
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import httpx
import pytest
from shop import PATIENCE, free_port, serving, shop

from qsession.ext.dashboard.__main__ import PASSWORD, file_of, is_private, main
from qsession.testing import assert_free


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("http", ["h11", "auto"])
def test_an_open_stream_does_not_keep_uvicorn_from_stopping(
    tmp_path: Path, number: signal.Signals, http: str
) -> None:
    """The stream ends in order, and the application gets to its own end."""
    with shop(tmp_path, "--http", http) as (running, url):
        with httpx.stream("GET", f"{url}stream", timeout=PATIENCE) as stream:
            lines = stream.iter_lines()
            assert [next(lines), next(lines)] == ["retry: 1000", ""]
            assert next(lines).startswith("data: {")
            running.send_signal(number)
            running.wait(PATIENCE)
            assert [*lines][-1] == ""  # and is not cut off, which would be an error
    log = (tmp_path / "server.log").read_text()
    assert "Application shutdown complete" in log
    assert "Traceback" not in log.replace("KeyboardInterrupt", "")
    assert "ERROR" not in log
    assert_free(tmp_path / "shop.db")


def test_clients_that_vanish_do_no_harm(tmp_path: Path) -> None:
    """Ten of them, in the middle of a stream; the server says nothing, and answers the next."""
    with shop(tmp_path) as (_, url):
        for _ in range(10):
            with httpx.stream("GET", f"{url}stream", timeout=PATIENCE) as stream:
                next(stream.iter_lines())
        answer = httpx.get(f"{url}state.json", timeout=PATIENCE)
        assert answer.json()["databases"][0]["totals"]["commits"] > 0
    assert "Traceback" not in (tmp_path / "server.log").read_text()


def test_served_by_itself_it_shows_other_processes(tmp_path: Path) -> None:
    """Its own process has no engine on the file, and is not listed."""
    with shop(tmp_path) as (running, _):
        port = free_port()
        url = f"http://localhost:{port}/"
        command = ("qsession.ext.dashboard", "sqlite:///shop.db", "--port", str(port))
        with serving(tmp_path, url, *command):
            (told,) = httpx.get(f"{url}state.json", timeout=PATIENCE).json()["databases"]
    assert told["place"] == str(tmp_path / "shop.db")
    assert [each["pid"] for each in told["processes"]] == [running.pid]
    assert told["totals"]["commits"] > 0


def test_served_by_itself_on_all_addresses_it_asks_for_the_password(tmp_path: Path) -> None:
    """Also of this machine."""
    (tmp_path / "a.db").touch()
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    command = ("qsession.ext.dashboard", "a.db", "--host", "0.0.0.0", "--port", str(port))
    with serving(tmp_path, url, *command, env={PASSWORD: "correct horse battery"}):
        with pytest.raises(HTTPError) as refused:
            urlopen(url, timeout=PATIENCE)
        assert refused.value.code == 401
        refused.value.close()
        basic = {"Authorization": "Basic OmNvcnJlY3QgaG9yc2UgYmF0dGVyeQ=="}
        with urlopen(Request(url, headers=basic), timeout=PATIENCE) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("arguments", "password", "words"),
    [
        (["a.db", "--host", "0.0.0.0"], "", "other machines could reach"),
        (["a.db", "--host", "::"], "", "other machines could reach"),
        (["a.db", "--host", "no.such.host.invalid"], "", "other machines could reach"),
        (["a.db", "--host", ""], "", "other machines could reach"),
        (["a.db", "--host", "0.0.0.0"], "short", "fewer than 12"),
        (["none.db"], "", "there is no file"),
        (["a.db", "--port", "70000"], "", "'70000' is not a number from 0 to 65535"),
        (["a.db", "--port", "-1"], "", "'-1' is not a number from 0 to 65535"),
        (["a.db", "--port", "http"], "", "'http' is not a number from 0 to 65535"),
        (["postgresql://localhost/a"], "", "SQLite file"),
        (["sqlite://"], "", "there is no file"),
    ],
)
def test_it_refuses_to_start(
    tmp_path: Path,
    arguments: list[str],
    password: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On an address that others reach without a password, on no port, and without a file."""
    (tmp_path / "a.db").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PASSWORD, password)
    monkeypatch.setattr("uvicorn.run", lambda *args, **kw: pytest.fail("it has started"))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_which_addresses_are_private() -> None:
    """Those of the loopback, by number or by a name for it."""
    assert is_private("127.0.0.1")
    assert is_private("::1")
    assert is_private("localhost")
    assert not is_private("0.0.0.0")
    assert not is_private("192.0.2.1")


def test_a_file_may_be_named_by_a_url_with_parameters(tmp_path: Path) -> None:
    """Links are followed: the other files of the database lie beside the file."""
    path = tmp_path / "a.db"
    path.touch()
    (tmp_path / "link.db").symlink_to(path)
    assert file_of(f"sqlite+qsession:///{tmp_path / 'link.db'}?queue_timeout=5") == path
