"""SQLAlchemy's suite for dialects outside its own tree; README.md here says how it is run."""

from sqlalchemy.testing.suite import *  # noqa: F403
from sqlalchemy.testing.suite import ServerSideCursorsTest as _ServerSideCursorsTest


class ServerSideCursorsTest(_ServerSideCursorsTest):
    """The suite knows by driver name what tells a streaming cursor; ours has the same attribute."""

    def _is_server_side(self, cursor):
        return cursor.server_side
