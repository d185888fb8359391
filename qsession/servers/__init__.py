"""PostgreSQL and MySQL, where the server orders the writers: pool, isolation, conflicts."""
