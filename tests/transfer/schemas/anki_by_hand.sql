CREATE TABLE notes (
    id BIGINT PRIMARY KEY,
    guid VARCHAR(20) NOT NULL,
    mid BIGINT NOT NULL,
    "mod" BIGINT NOT NULL,
    usn BIGINT NOT NULL,
    tags TEXT NOT NULL,
    flds TEXT NOT NULL,
    sfld TEXT NOT NULL,
    csum BIGINT NOT NULL,
    flags BIGINT NOT NULL,
    data TEXT NOT NULL
);
