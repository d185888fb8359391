"""Waiting across event loops and threads: for the ticket, connections, and turns of the loop."""
