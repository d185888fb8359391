"""The libraries that are compared, a file each, all with the four operations of `Peer`."""
