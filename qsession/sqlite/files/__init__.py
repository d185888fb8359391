"""What a file can be: in memory, read-only, on a network, deleted; and what its errors mean."""
