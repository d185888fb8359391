CREATE TABLE vvar (
    name TEXT PRIMARY KEY NOT NULL,
    value CLOB,
    CHECK(typeof(name)='text' AND length(name)>=1)
);
CREATE TABLE vfile (
    id INTEGER PRIMARY KEY,
    vid INTEGER REFERENCES blob,
    chnged INT DEFAULT 0,
    deleted BOOLEAN DEFAULT 0,
    isexe BOOLEAN,
    islink BOOLEAN,
    rid INTEGER,
    mrid INTEGER,
    mtime INTEGER,
    pathname TEXT,
    origname TEXT,
    mhash TEXT,
    UNIQUE(pathname,vid)
);
CREATE TABLE vmerge (
    id INTEGER REFERENCES vfile,
    merge INTEGER,
    mhash TEXT
);
CREATE UNIQUE INDEX vmergex1 ON vmerge(id,mhash);
CREATE TRIGGER vmerge_ck1 AFTER INSERT ON vmerge WHEN new.mhash IS NULL BEGIN
    SELECT raise(FAIL, 'trying to update a newer check-out with an older version of Fossil');
END;
INSERT INTO vvar VALUES ('repository', '../a.fossil'), ('checkout', 5);
INSERT INTO vfile VALUES (1, 5, 0, 0, 0, 0, 4, 4, 1796031147, 'a.txt', NULL, NULL), (2, 5, 1, 0, 1, NULL, 5, 5, 1796031148, 'ü.txt', 'u.txt', NULL);
INSERT INTO vmerge VALUES (1, 5, '53c974e835a2478ee00667b67c160172771aa4a0');
