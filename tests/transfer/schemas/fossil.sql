CREATE TABLE blob (
    rid INTEGER PRIMARY KEY,
    rcvid INTEGER,
    size INTEGER,
    uuid TEXT UNIQUE NOT NULL,
    content BLOB,
    CHECK(length(uuid)>=40 AND rid>0)
);
CREATE TABLE delta (
    rid INTEGER PRIMARY KEY,
    srcid INTEGER NOT NULL REFERENCES blob
);
CREATE INDEX delta_i1 ON delta(srcid);
CREATE TABLE user (
    uid INTEGER PRIMARY KEY,
    login TEXT UNIQUE,
    pw TEXT,
    cap TEXT,
    cookie TEXT,
    ipaddr TEXT,
    cexpire DATETIME,
    info TEXT,
    mtime DATE,
    photo BLOB,
    jx TEXT DEFAULT '{}'
);
CREATE TABLE rcvfrom (
    rcvid INTEGER PRIMARY KEY,
    uid INTEGER REFERENCES user,
    mtime DATETIME,
    nonce TEXT UNIQUE,
    ipaddr TEXT
);
CREATE TABLE config (
    name TEXT PRIMARY KEY NOT NULL,
    value CLOB,
    mtime DATE,
    CHECK(typeof(name)='text' AND length(name)>=1)
);
CREATE TABLE filename (
    fnid INTEGER PRIMARY KEY,
    name TEXT UNIQUE
);
CREATE TABLE mlink (
    mid INTEGER,
    fid INTEGER,
    pmid INTEGER,
    pid INTEGER,
    fnid INTEGER REFERENCES filename,
    pfnid INTEGER,
    mperm INTEGER,
    isaux BOOLEAN DEFAULT 0
);
CREATE INDEX mlink_i1 ON mlink(mid);
CREATE INDEX mlink_i2 ON mlink(fnid);
CREATE INDEX mlink_i3 ON mlink(fid);
CREATE INDEX mlink_i4 ON mlink(pid);
CREATE TABLE plink (
    pid INTEGER REFERENCES blob,
    cid INTEGER REFERENCES blob,
    isprim BOOLEAN,
    mtime DATETIME,
    baseid INTEGER REFERENCES blob,
    UNIQUE(pid, cid)
);
CREATE INDEX plink_i2 ON plink(cid,pid);
CREATE TABLE event (
    type TEXT,
    mtime DATETIME,
    objid INTEGER PRIMARY KEY,
    tagid INTEGER,
    uid INTEGER REFERENCES user,
    bgcolor TEXT,
    euser TEXT,
    user TEXT,
    ecomment TEXT,
    comment TEXT,
    brief TEXT,
    omtime DATETIME
);
CREATE INDEX event_i1 ON event(mtime);
CREATE TABLE tag (
    tagid INTEGER PRIMARY KEY,
    tagname TEXT UNIQUE
);
CREATE TABLE tagxref (
    tagid INTEGER REFERENCES tag,
    tagtype INTEGER,
    srcid INTEGER REFERENCES blob,
    origid INTEGER REFERENCES blob,
    value TEXT,
    mtime TIMESTAMP,
    rid INTEGER REFERENCE blob,
    UNIQUE(rid, tagid)
);
CREATE INDEX tagxref_i1 ON tagxref(tagid, mtime);
CREATE TABLE ticket (
    tkt_id INTEGER PRIMARY KEY,
    tkt_uuid TEXT UNIQUE,
    tkt_mtime DATE,
    tkt_ctime DATE,
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
    tkt_id INTEGER REFERENCES ticket,
    tkt_rid INTEGER REFERENCES blob,
    tkt_mtime DATE,
    tkt_user TEXT,
    login TEXT,
    username TEXT,
    mimetype TEXT,
    icomment TEXT
);
CREATE INDEX ticketchng_idx1 ON ticketchng(tkt_id, tkt_mtime);
CREATE TABLE cherrypick (
    parentid INT,
    childid INT,
    isExclude BOOLEAN DEFAULT false,
    PRIMARY KEY(parentid, childid)
) WITHOUT ROWID;
CREATE INDEX cherrypick_cid ON cherrypick(childid);
INSERT INTO blob VALUES (1, 1, 162, '97c651f6cf31c47c7d9e9b72f8939b9b47244e1d', x'000000a2789c1d'), (2, 2, -1, '53c974e835a2478ee00667b67c160172771aa4a0', NULL);
INSERT INTO delta VALUES (2, 1);
INSERT INTO user VALUES (1, 'ann', 'secret', 's', NULL, NULL, NULL, '', NULL, NULL, '{}'), (2, 'nobody', '', 'gjorz', NULL, NULL, NULL, 'Nobody', NULL, x'89504e47', '{"a":1}');
INSERT INTO rcvfrom VALUES (1, 1, 2461374.8975427896, NULL, NULL), (2, 1, 2461374.5, 'n1', '127.0.0.1');
INSERT INTO config VALUES ('hash-policy', 2, 1796031147), ('project-name', 'Größe', 1796031147);
INSERT INTO filename VALUES (1, 'a.txt');
INSERT INTO mlink VALUES (2, 2, 1, 0, 1, 0, 0, 0);
INSERT INTO plink VALUES (1, 2, 1, 2461374.897543172, NULL);
INSERT INTO event VALUES ('ci', 2461374.89754279, 1, NULL, NULL, NULL, NULL, 'ann', NULL, 'initial empty check-in', NULL, 2461374.89754279);
INSERT INTO tag VALUES (1, 'bgcolor'), (8, 'branch');
INSERT INTO tagxref VALUES (8, 2, 1, 1, 'trunk', 2461374.8975427896, 1), (8, 2, 0, 1, NULL, 2461374.897543334, 2);
INSERT INTO ticket VALUES (1, 'c85c41845e7103b6dbad2a8350bd25982f2f9ffd', 2461374.897543426, 2461374.897543426, NULL, 'Open', NULL, NULL, NULL, NULL, NULL, NULL, 'A bug', NULL);
INSERT INTO ticketchng VALUES (1, 2, 2461374.897543426, 'ann', NULL, NULL, NULL, NULL);
INSERT INTO cherrypick VALUES (1, 2, 0);
