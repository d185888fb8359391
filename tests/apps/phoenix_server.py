"""Phoenix's server with one name of its own changed: its create_async_engine is qsession's."""

from __future__ import annotations

import phoenix.db.engines

import qsession

phoenix.db.engines.create_async_engine = qsession.create_async_engine

from phoenix.server.main import main  # noqa: E402

main()
