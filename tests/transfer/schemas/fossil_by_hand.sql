CREATE TABLE config (name VARCHAR(99) PRIMARY KEY, value TEXT, mtime DOUBLE PRECISION);
CREATE TABLE rcvfrom (
    rcvid BIGINT PRIMARY KEY,
    uid BIGINT,
    mtime DOUBLE PRECISION,
    nonce TEXT,
    ipaddr TEXT
);
CREATE TABLE plink (pid BIGINT, cid BIGINT, isprim BOOLEAN, mtime DOUBLE PRECISION, baseid BIGINT);
CREATE TABLE event (
    type TEXT,
    mtime DOUBLE PRECISION,
    objid BIGINT PRIMARY KEY,
    tagid BIGINT,
    uid BIGINT,
    bgcolor TEXT,
    euser TEXT,
    "user" TEXT,
    ecomment TEXT,
    comment TEXT,
    brief TEXT,
    omtime DOUBLE PRECISION
);
CREATE TABLE tagxref (
    tagid BIGINT,
    tagtype BIGINT,
    srcid BIGINT,
    origid BIGINT,
    value TEXT,
    mtime DOUBLE PRECISION,
    rid BIGINT,
    UNIQUE (rid, tagid)
);
CREATE TABLE ticket (
    tkt_id BIGINT PRIMARY KEY,
    tkt_uuid VARCHAR(99),
    tkt_mtime DOUBLE PRECISION,
    tkt_ctime DOUBLE PRECISION,
    type TEXT,
    status TEXT,
    subsystem TEXT,
    priority TEXT,
    severity TEXT,
    foundin TEXT,
    private_contact TEXT,
    resolution TEXT,
    title TEXT,
    comment TEXT
);
CREATE TABLE ticketchng (
    tkt_id BIGINT,
    tkt_rid BIGINT,
    tkt_mtime DOUBLE PRECISION,
    tkt_user TEXT,
    login TEXT,
    username TEXT,
    mimetype TEXT,
    icomment TEXT
);
