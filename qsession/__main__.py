"""``python -m qsession``: the command, where the script is not on the path."""

from qsession.cli import main

main()
