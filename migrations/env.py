"""Alembic runs this file for each command. The work is done in qsession.migrate."""

from examples.demo.models import Account
from qsession import migrate

migrate.run(Account.metadata)
