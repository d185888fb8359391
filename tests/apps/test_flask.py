"""Flask-SQLAlchemy with Flask-Session: threads that serve requests, and sessions in the file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from conftest import File
from flask import Flask, session
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select
from sqlalchemy.orm import Mapped, mapped_column

THREADS, TIMES, PAGES = 8, 25, 4


def application(file: File) -> Flask:
    """It counts how often each page was read, and how many pages a user has read."""
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI=file.url, SESSION_TYPE="sqlalchemy")
    app.config["SESSION_SQLALCHEMY"] = db = SQLAlchemy(app)

    class Page(db.Model):  # type: ignore[misc, name-defined]
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(unique=True)
        reads: Mapped[int] = mapped_column(default=0)

    @app.post("/<name>")
    def read(name: str) -> dict[str, int]:
        page = db.session.scalar(select(Page).where(Page.name == name).with_for_update())
        if page is None:
            page = Page(name=name, reads=0)
            db.session.add(page)
        page.reads += 1
        db.session.commit()
        session["read"] = session.get("read", 0) + 1
        return {"read": session["read"]}

    with app.app_context():
        Session(app)
        db.create_all()
    return app


def test_each_request_of_each_thread_counts(file: File) -> None:
    """Eight users at once: no request fails, and nothing is lost in a page or a session."""
    app = application(file)

    def user(_: int) -> list[int]:
        client = app.test_client()
        answers = [client.post(f"/page-{number % PAGES}") for number in range(TIMES)]
        return [answer.get_json()["read"] for answer in answers]

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(user, range(THREADS))) == [list(range(1, TIMES + 1))] * THREADS
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()
    assert file.rows("SELECT count(*), sum(reads) FROM page") == [(PAGES, THREADS * TIMES)]
    assert file.rows("SELECT count(*) FROM sessions") == [(THREADS,)]
