"""One physical connection: its thread or the loop, how long statements take, what is set on it.

`physical.DriverConnection` is the connection, `lease.Lease` its use by one transaction.
"""
