CREATE TABLE col (
    id integer PRIMARY KEY,
    crt integer NOT NULL,
    mod integer NOT NULL,
    scm integer NOT NULL,
    ver integer NOT NULL,
    dty integer NOT NULL,
    usn integer NOT NULL,
    ls integer NOT NULL,
    conf text NOT NULL,
    models text NOT NULL,
    decks text NOT NULL,
    dconf text NOT NULL,
    tags text NOT NULL
);
CREATE TABLE notes (
    id integer PRIMARY KEY,
    guid text NOT NULL,
    mid integer NOT NULL,
    mod integer NOT NULL,
    usn integer NOT NULL,
    tags text NOT NULL,
    flds text NOT NULL,
    sfld integer NOT NULL,
    csum integer NOT NULL,
    flags integer NOT NULL,
    data text NOT NULL
);
CREATE INDEX ix_notes_usn ON notes (usn);
CREATE INDEX ix_notes_csum ON notes (csum);
CREATE INDEX idx_notes_mid ON notes (mid);
CREATE TABLE cards (
    id integer PRIMARY KEY,
    nid integer NOT NULL,
    did integer NOT NULL,
    ord integer NOT NULL,
    mod integer NOT NULL,
    usn integer NOT NULL,
    type integer NOT NULL,
    queue integer NOT NULL,
    due integer NOT NULL,
    ivl integer NOT NULL,
    factor integer NOT NULL,
    reps integer NOT NULL,
    lapses integer NOT NULL,
    left integer NOT NULL,
    odue integer NOT NULL,
    odid integer NOT NULL,
    flags integer NOT NULL,
    data text NOT NULL
);
CREATE INDEX ix_cards_usn ON cards (usn);
CREATE INDEX ix_cards_nid ON cards (nid);
CREATE INDEX ix_cards_sched ON cards (did, queue, due);
CREATE INDEX idx_cards_odid ON cards (odid) WHERE odid != 0;
CREATE TABLE revlog (
    id integer PRIMARY KEY,
    cid integer NOT NULL,
    usn integer NOT NULL,
    ease integer NOT NULL,
    ivl integer NOT NULL,
    lastIvl integer NOT NULL,
    factor integer NOT NULL,
    time integer NOT NULL,
    type integer NOT NULL
);
CREATE INDEX ix_revlog_usn ON revlog (usn);
CREATE INDEX ix_revlog_cid ON revlog (cid);
CREATE TABLE deck_config (
    id integer PRIMARY KEY NOT NULL,
    name text NOT NULL COLLATE unicase,
    mtime_secs integer NOT NULL,
    usn integer NOT NULL,
    config blob NOT NULL
);
CREATE TABLE config (
    KEY text NOT NULL PRIMARY KEY,
    usn integer NOT NULL,
    mtime_secs integer NOT NULL,
    val blob NOT NULL
) without rowid;
CREATE TABLE fields (
    ntid integer NOT NULL,
    ord integer NOT NULL,
    name text NOT NULL COLLATE unicase,
    config blob NOT NULL,
    PRIMARY KEY (ntid, ord)
) without rowid;
CREATE UNIQUE INDEX idx_fields_name_ntid ON fields (name, ntid);
CREATE TABLE templates (
    ntid integer NOT NULL,
    ord integer NOT NULL,
    name text NOT NULL COLLATE unicase,
    mtime_secs integer NOT NULL,
    usn integer NOT NULL,
    config blob NOT NULL,
    PRIMARY KEY (ntid, ord)
) without rowid;
CREATE UNIQUE INDEX idx_templates_name_ntid ON templates (name, ntid);
CREATE INDEX idx_templates_usn ON templates (usn);
CREATE TABLE notetypes (
    id integer NOT NULL PRIMARY KEY,
    name text NOT NULL COLLATE unicase,
    mtime_secs integer NOT NULL,
    usn integer NOT NULL,
    config blob NOT NULL
);
CREATE UNIQUE INDEX idx_notetypes_name ON notetypes (name);
CREATE INDEX idx_notetypes_usn ON notetypes (usn);
CREATE TABLE decks (
    id integer PRIMARY KEY NOT NULL,
    name text NOT NULL COLLATE unicase,
    mtime_secs integer NOT NULL,
    usn integer NOT NULL,
    common blob NOT NULL,
    kind blob NOT NULL
);
CREATE UNIQUE INDEX idx_decks_name ON decks (name);
CREATE TABLE tags (
    tag text NOT NULL PRIMARY KEY COLLATE unicase,
    usn integer NOT NULL,
    collapsed boolean NOT NULL,
    config blob NULL
) without rowid;
CREATE TABLE graves (
    oid integer NOT NULL,
    type integer NOT NULL,
    usn integer NOT NULL,
    PRIMARY KEY (oid, type)
) WITHOUT ROWID;
CREATE INDEX idx_graves_pending ON graves (usn);
INSERT INTO col VALUES (1, 1796011200, 1796031123273, 1796031123148, 18, 0, -1, 0, '', '', '', '', '');
INSERT INTO notes VALUES (1796031123257, 'f$8k', 1, 1796031123, -1, '', 'Haus' || char(31) || 'house', 'Haus', 1135451644, 0, '');
INSERT INTO notes VALUES (1796031123261, '^tsY#~VEi', 1, 1796031123, -1, ' a::b ', 'Größe ''x''' || char(31) || '%s \n', 'Größe ''x''', 4294967295, 0, '');
INSERT INTO cards VALUES (1796031123261, 1796031123257, 1, 0, 1796031123, -1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, '{}');
INSERT INTO revlog VALUES (1796031123269, 1796031123261, -1, 3, -600, 0, 0, 4210, 0);
INSERT INTO deck_config VALUES (1, 'Default', 0, 0, x'0a080000803f');
INSERT INTO config VALUES ('curDeck', 0, 1796031123, '1'), ('sortType', -1, 1796031123, x'226e6f746546696c6422');
INSERT INTO fields VALUES (1, 0, 'Front', x''), (1, 1, 'Back', x'00ff');
INSERT INTO templates VALUES (1, 0, 'Card 1', 0, 0, x'0a097b7b46726f6e747d7d');
INSERT INTO notetypes VALUES (1, 'Basic', 0, 0, x'1a94012e63617264');
INSERT INTO decks VALUES (1, 'Default', 0, 0, x'', x''), (2, 'Default' || char(31) || 'Neu', 0, -1, x'0801', x'12');
INSERT INTO tags VALUES ('a::b', -1, 0, NULL), ('Zug', -1, 1, x'01');
INSERT INTO graves VALUES (1796031123250, 0, -1), (1796031123250, 1, -1);
