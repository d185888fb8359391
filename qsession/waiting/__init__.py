"""Fair waiting, across event loops and threads: for the ticket, and for connections."""
