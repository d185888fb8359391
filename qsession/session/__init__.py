"""`qsession()` and its sessions: the maker, sharing among tasks, and retries."""

from qsession.session.maker import QSession, SessionMaker, qsession

__all__ = ["QSession", "SessionMaker", "qsession"]
