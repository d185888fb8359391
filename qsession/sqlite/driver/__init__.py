"""One physical connection: its thread, the time of its statements, and its settings.

`physical.DriverConnection` is the connection; `lease.Lease` is its use by one transaction.
"""
