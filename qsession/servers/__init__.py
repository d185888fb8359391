"""PostgreSQL and MySQL, where the server is the queue: pool, isolation, conflicts."""
