"""Waiting, across loops and threads: for the ticket, for connections, for a turn of the loop."""
