"""Which commits have changed which tables of a file? For observers; without one it costs nothing.

`Commits` tells the subscriptions of this process, and `Witness` watches one commit of our own.
"""
