"""`qsession()` and the sessions it makes: the maker, sharing among tasks, and retry."""

from qsession.session.maker import QSession, SessionMaker, qsession

__all__ = ["QSession", "SessionMaker", "qsession"]
