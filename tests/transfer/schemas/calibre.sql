CREATE TABLE authors (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL COLLATE NOCASE,
    sort TEXT COLLATE NOCASE,
    link TEXT NOT NULL DEFAULT "",
    UNIQUE(name)
);
CREATE TABLE books (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL DEFAULT 'Unknown' COLLATE NOCASE,
    sort TEXT COLLATE NOCASE,
    timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    pubdate TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    series_index REAL NOT NULL DEFAULT 1.0,
    author_sort TEXT COLLATE NOCASE,
    isbn TEXT DEFAULT "" COLLATE NOCASE,
    lccn TEXT DEFAULT "" COLLATE NOCASE,
    path TEXT NOT NULL DEFAULT "",
    flags INTEGER NOT NULL DEFAULT 1,
    uuid TEXT,
    has_cover BOOL DEFAULT 0,
    last_modified TIMESTAMP NOT NULL DEFAULT "2000-01-01 00:00:00+00:00"
);
CREATE INDEX authors_idx ON books (author_sort COLLATE NOCASE);
CREATE INDEX books_idx ON books (sort COLLATE NOCASE);
CREATE TABLE books_authors_link (
    id INTEGER PRIMARY KEY,
    book INTEGER NOT NULL,
    author INTEGER NOT NULL,
    UNIQUE(book, author)
);
CREATE INDEX books_authors_link_aidx ON books_authors_link (author);
CREATE INDEX books_authors_link_bidx ON books_authors_link (book);
CREATE TABLE ratings (
    id INTEGER PRIMARY KEY,
    rating INTEGER CHECK(rating > -1 AND rating < 11),
    UNIQUE (rating)
);
CREATE TABLE books_ratings_link (
    id INTEGER PRIMARY KEY,
    book INTEGER NOT NULL,
    rating INTEGER NOT NULL,
    UNIQUE(book, rating)
);
CREATE INDEX books_ratings_link_aidx ON books_ratings_link (rating);
CREATE INDEX books_ratings_link_bidx ON books_ratings_link (book);
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL COLLATE NOCASE,
    sort TEXT COLLATE NOCASE,
    UNIQUE (name)
);
CREATE INDEX series_idx ON series (name COLLATE NOCASE);
CREATE TABLE data (
    id INTEGER PRIMARY KEY,
    book INTEGER NOT NULL,
    format TEXT NOT NULL COLLATE NOCASE,
    uncompressed_size INTEGER NOT NULL,
    name TEXT NOT NULL,
    UNIQUE(book, format)
);
CREATE INDEX data_idx ON data (book);
CREATE INDEX formats_idx ON data (format);
CREATE TABLE conversion_options (
    id INTEGER PRIMARY KEY,
    format TEXT NOT NULL COLLATE NOCASE,
    book INTEGER,
    data BLOB NOT NULL,
    UNIQUE(format,book)
);
CREATE INDEX conversion_options_idx_a ON conversion_options (format COLLATE NOCASE);
CREATE INDEX conversion_options_idx_b ON conversion_options (book);
CREATE TABLE custom_columns (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    label TEXT NOT NULL,
    name TEXT NOT NULL,
    datatype TEXT NOT NULL,
    mark_for_delete BOOL DEFAULT 0 NOT NULL,
    editable BOOL DEFAULT 1 NOT NULL,
    display TEXT DEFAULT "{}" NOT NULL,
    is_multiple BOOL DEFAULT 0 NOT NULL,
    normalized BOOL NOT NULL,
    UNIQUE(label)
);
CREATE INDEX custom_columns_idx ON custom_columns (label);
CREATE TABLE annotations (
    id INTEGER PRIMARY KEY,
    book INTEGER NOT NULL,
    format TEXT NOT NULL COLLATE NOCASE,
    user_type TEXT NOT NULL,
    user TEXT NOT NULL,
    timestamp REAL NOT NULL,
    annot_id TEXT NOT NULL,
    annot_type TEXT NOT NULL,
    annot_data TEXT NOT NULL,
    searchable_text TEXT NOT NULL DEFAULT "",
    UNIQUE(book, user_type, user, format, annot_type, annot_id)
);
CREATE INDEX annot_idx ON annotations (book);
CREATE TABLE preferences (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    val TEXT NOT NULL,
    UNIQUE(key)
);
CREATE TABLE identifiers (
    id INTEGER PRIMARY KEY,
    book INTEGER NOT NULL,
    type TEXT NOT NULL DEFAULT "isbn" COLLATE NOCASE,
    val TEXT NOT NULL COLLATE NOCASE,
    UNIQUE(book, type)
);
INSERT INTO authors VALUES (1, 'Ann Émile', 'Émile, Ann', ''), (2, 'Bob', 'Bob', 'https://example.com');
INSERT INTO books VALUES (1, 'Das Buch', 'Buch, Das', '2024-01-02 03:04:05.678901+00:00', '0101-01-01 00:00:00+00:00', 1.0, 'Émile, Ann', '', '', 'Ann/Das Buch (1)', 1, '6f9619ff-8b86-d011-b42d-00cf4fc964ff', 1, '2024-06-02 03:04:05+00:00');
INSERT INTO books VALUES (5, 'The 2nd', '2nd, The', '2024-01-02 03:04:05+00:00', '2024-01-02 00:00:00+02:00', 2.5, 'Bob', '', '', 'x', 1, NULL, 0, '2024-06-02 03:04:05+00:00');
DELETE FROM books WHERE id = 5;
INSERT INTO books_authors_link VALUES (1, 1, 1);
INSERT INTO ratings VALUES (1, 8);
INSERT INTO books_ratings_link VALUES (1, 1, 1);
INSERT INTO series VALUES (1, 'Reihe', NULL);
INSERT INTO data VALUES (1, 1, 'EPUB', 123456, 'Das Buch');
INSERT INTO conversion_options VALUES (1, 'PIPE', 1, x'80025d710128');
INSERT INTO annotations VALUES (1, 1, 'EPUB', 'local', 'viewer', 1704164645.5, 'a', 'highlight', '{}', 'words to find');
INSERT INTO preferences VALUES (1, 'bools_are_tristate', 'true');
INSERT INTO identifiers VALUES (1, 1, 'isbn', '9783161484100');
INSERT INTO custom_columns VALUES (1, 'read', 'Gelesen', 'bool', 0, 1, '{"a": 1}', 0, 0);
CREATE VIRTUAL TABLE annotations_fts USING fts5(searchable_text, content = 'annotations', content_rowid = 'id');
CREATE VIEW meta AS SELECT id, title, (SELECT sortconcat(l.id, name) FROM books_authors_link l JOIN authors a ON a.id = l.author WHERE book = books.id) authors FROM books;
CREATE TRIGGER annotations_fts_insert_trg AFTER INSERT ON annotations BEGIN
    INSERT INTO annotations_fts (rowid, searchable_text) VALUES (NEW.id, NEW.searchable_text);
END;
CREATE TRIGGER books_insert_trg AFTER INSERT ON books BEGIN
    UPDATE books SET sort = title_sort(NEW.title), uuid = uuid4() WHERE id = NEW.id;
END;
CREATE TRIGGER series_insert_trg AFTER INSERT ON series BEGIN
    UPDATE series SET sort = title_sort(NEW.name) WHERE id = NEW.id;
END;
