"""What becomes of a schema that `qsession.copy` makes: each thing is kept, or said to be lost."""

from __future__ import annotations

import asyncio
import os
from datetime import date
from decimal import Decimal
from uuid import UUID

import pytest
from copy_databases import ask, made, tables
from sqlalchemy import make_url
from sqlalchemy.exc import IntegrityError

from qsession import CopyError, copy

SERVERS = ("psycopg", "asyncmy")


ON_SERVERS = [pytest.param(kind, marks=pytest.mark.servers) for kind in SERVERS]
EVERYWHERE = ["sqlite", *ON_SERVERS]


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_a_view_of_the_same_name(new, tmp_path, kind):
    """It cannot take the rows, so the copy says so, and leaves nothing."""
    here = await new(kind)
    await ask(here, "CREATE TABLE old (id INTEGER)", "CREATE VIEW t AS SELECT id FROM old")
    source = made(
        tmp_path / "s.db",
        "CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1);"
        "CREATE TABLE u (id INTEGER PRIMARY KEY);",
    )
    with pytest.raises(CopyError, match="t in the target is not a table"):
        await copy(source, here)
    assert await tables(here) == {"old"}


async def test_names_that_differ_by_case(new, tmp_path):
    """To SQLite they are the same table: the rows go there, and references are followed."""
    here = await new("sqlite")
    await ask(
        here,
        "CREATE TABLE Users (id INTEGER PRIMARY KEY, boss INTEGER REFERENCES USERS (ID))",
        "CREATE TABLE posts (author INTEGER REFERENCES uSERS (Id))",
    )
    script = """
    CREATE TABLE users (id INTEGER PRIMARY KEY, boss INTEGER);
    CREATE TABLE Posts (author INTEGER);
    INSERT INTO users VALUES (1, 1), (2, 1);
    INSERT INTO Posts VALUES (2), (3);
    """
    source = made(tmp_path / "s.db", script)
    with pytest.raises(CopyError, match="refers to a row of users that is not there"):
        await copy(source, here)
    await ask(source, "DELETE FROM Posts WHERE author = 3")
    report = await copy(source, here, verify=True)
    assert {each.name: each.rows for each in report.tables} == {"users": 2, "Posts": 1}
    assert await ask(here, "SELECT * FROM users, posts WHERE id = author") == [(2, 1, 2)]
    assert await tables(here) == {"Users", "posts"}


@pytest.mark.servers
async def test_two_tables_that_would_be_one(new):
    """PostgreSQL tells them apart, SQLite does not."""
    there, here = await new("psycopg"), await new("sqlite")
    await ask(there, 'CREATE TABLE "Users" (id integer)', "CREATE TABLE users (id integer)")
    await ask(here, "CREATE TABLE users (id integer)")
    with pytest.raises(CopyError, match="Users and users are one table in the target"):
        await copy(there, here)


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_references_in_another_case(new, tmp_path, kind):
    """SQLite takes ``REFERENCES Users (ID)`` for a reference to users, so the copy does."""
    script = """
    CREATE TABLE users (id INTEGER PRIMARY KEY);
    CREATE TABLE posts (id INTEGER PRIMARY KEY, author INTEGER REFERENCES Users (ID),
                        reader INTEGER REFERENCES USERS);
    INSERT INTO users VALUES (1);
    INSERT INTO posts VALUES (1, 1, 1), (2, 7, 7);
    """
    source = made(tmp_path / "s.db", script)
    here = await new(kind)
    with pytest.raises(CopyError, match="refers to a row of users that is not there") as refused:
        await copy(source, here)
    assert set(refused.value.counts) == {
        ("posts", column, "refers to a row of users that is not there")
        for column in ("author", "reader")
    }
    await ask(source, "DELETE FROM posts WHERE id = 2")
    assert (await copy(source, here, verify=True)).rows == 2


UNIQUE = """
CREATE TABLE t (id INTEGER PRIMARY KEY, a VARCHAR(254) NOT NULL UNIQUE, b NUMERIC(10,2) UNIQUE,
                c TEXT DEFAULT '' UNIQUE, d UNIQUE, e VARCHAR(9) COLLATE NOCASE,
                f INTEGER, g INTEGER, UNIQUE (e COLLATE NOCASE), UNIQUE (f, g));
CREATE INDEX low ON t (lower(a));
CREATE UNIQUE INDEX some ON t (f) WHERE f > 5;
INSERT INTO t VALUES (1, 'a', 1.5, 'c', 'd', 'e', 1, 1);
"""
AGAIN = {"a": "'a'", "b": "1.5", "c": "'c'", "d": "'d'", "e": "'e'", "f, g": "1, 1"}


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_what_is_unique(new, tmp_path, kind):
    """Whichever way it was written; indexes of expressions and collations are named, or kept."""
    here = await new(kind)
    report = await copy(made(tmp_path / "s.db", UNIQUE), here, verify=True)
    for columns, values in AGAIN.items():
        filled = ("", "") if columns == "a" else (", a", ", 'other'")
        with pytest.raises(IntegrityError):
            await ask(
                here, f"INSERT INTO t (id, {columns}{filled[0]}) VALUES (2, {values}{filled[1]})"
            )
    if kind != "sqlite":
        assert set(report.notes) == {
            "t: left out COLLATE NOCASE",
            "t: left out the index low, of an expression",
            "t: left out the partial index some",
        }


ODD = """
CREATE TABLE "odd ones" (id INTEGER PRIMARY KEY AUTOINCREMENT, word TEXT COLLATE NOCASE UNIQUE,
    any, twice AS (id * 2), CHECK (id < 1000)) /* a comment */;
CREATE TABLE strict (x ANY) STRICT;
CREATE TABLE keys (a TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE INDEX low ON "odd ones" (lower(word)) WHERE id > 0;
INSERT INTO "odd ones" (word, any) VALUES ('a', 5), ('b', x'00');
INSERT INTO strict VALUES ('1'), (1);
INSERT INTO keys VALUES ('k');
"""


async def test_from_file_to_file_the_schema_is_the_same(new, tmp_path):
    """To the letter, with all that SQLAlchemy does not know of."""
    source, here = made(tmp_path / "s.db", ODD), await new("sqlite")
    report = await copy(source, here, verify=True)
    assert (report.rows, report.notes) == (5, ())
    for query in (
        "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2",
        'SELECT *, typeof("any") FROM "odd ones"',
        "SELECT x, typeof(x) FROM strict ORDER BY rowid",
    ):
        assert await ask(here, query) == await ask(source, query)
    again = await copy(source, here, replace=True, verify=True)
    assert again.rows == 5


PARTS = (
    "CREATE TABLE measures (day date NOT NULL, value integer) PARTITION BY RANGE (day)",
    (
        "CREATE TABLE measures_2023 PARTITION OF measures FOR VALUES "
        "FROM ('2023-01-01') TO ('2024-01-01') PARTITION BY RANGE (day)"
    ),
    "CREATE TABLE measures_2023_all PARTITION OF measures_2023 DEFAULT",
    "CREATE TABLE measures_rest PARTITION OF measures DEFAULT",
    "INSERT INTO measures VALUES ('2023-05-05', 1), ('2024-05-05', 2)",
    "CREATE TABLE animals (id integer PRIMARY KEY, friend integer REFERENCES animals)",
    "CREATE TABLE cats (lives integer) INHERITS (animals)",
    "INSERT INTO animals VALUES (1, 1)",
    "INSERT INTO cats VALUES (2, 1, 9), (3, 3, 9)",
)


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["sqlite", "asyncpg", "psycopg", "asyncmy"])
async def test_partitions_and_tables_that_inherit(new, kind):
    """Each row once: those of a partition in its table, and those that inherit in their own."""
    there, here = await new("asyncpg"), await new(kind)
    await ask(there, *PARTS)
    report = await copy(there, here, verify=True)
    rows = {each.name: each.rows for each in report.tables}
    assert rows == {"measures": 2, "animals": 1, "cats": 2}
    assert await ask(here, "SELECT count(*) FROM measures") == [(2,)]
    assert await ask(here, "SELECT id FROM animals") == [(1,)]
    assert set(report.notes) == {
        "measures: left out its partitions; their rows are copied as its own",
        "cats: left out its inheritance from animals",
    }


@pytest.mark.servers
async def test_a_target_with_partitions_and_tables_that_inherit(new):
    """Rows find their partition, and the verification reads each once."""
    there, here = await new("psycopg"), await new("asyncpg")
    await ask(there, *PARTS)
    await ask(here, *(each for each in PARTS if each.startswith("CREATE")))
    await copy(there, here, verify=True)
    for table, count in (("measures_2023_all", 1), ("ONLY animals", 1), ("cats", 2)):
        assert await ask(here, f"SELECT count(*) FROM {table}") == [(count,)]


async def test_indexes_of_expressions_in_two_copies_at_once(new, tmp_path):
    """None of them is warned of, whichever copy is the first to end."""
    sources = [made(tmp_path / f"{number}.db", ODD) for number in (1, 2)]
    copies = [copy(source, await new("sqlite")) for source in sources]
    assert [report.rows for report in await asyncio.gather(*copies)] == [5, 5]


NUMBERED = (
    "CREATE SEQUENCE shared",
    "CREATE TABLE a (id integer PRIMARY KEY, n serial, m bigint DEFAULT nextval('shared'))",
    (
        "CREATE TABLE b (id bigint PRIMARY KEY DEFAULT nextval('shared'), i int GENERATED ALWAYS "
        "AS IDENTITY)"
    ),
    "CREATE TABLE c (id serial PRIMARY KEY)",
    "CREATE TABLE e (a integer, b serial, PRIMARY KEY (a, b))",
    'CREATE SEQUENCE "My Names"',
    "CREATE TABLE d (name text DEFAULT 'd' || nextval('\"My Names\"'))",
    "INSERT INTO d DEFAULT VALUES",
    "INSERT INTO a (id) VALUES (1), (2), (3)",
    "INSERT INTO b DEFAULT VALUES",
    "INSERT INTO c DEFAULT VALUES",
)


@pytest.mark.servers
async def test_columns_that_number_themselves(new):
    """Not only keys: in PostgreSQL they go on, and elsewhere it is said that they do not."""
    there, here = await new("asyncpg"), await new("psycopg")
    await ask(there, *NUMBERED)
    report = await copy(there, here, verify=True)
    assert not report.notes
    assert await ask(here, "INSERT INTO a (id) VALUES (4) RETURNING n, m") == [(4, 5)]
    assert await ask(here, "INSERT INTO b DEFAULT VALUES RETURNING id, i") == [(6, 2)]
    assert await ask(here, "INSERT INTO c DEFAULT VALUES RETURNING id") == [(2,)]
    assert await ask(here, "INSERT INTO d DEFAULT VALUES RETURNING name") == [("d2",)]
    assert await ask(here, "INSERT INTO e (a) VALUES (1) RETURNING b") == [(1,)]
    for kind in ("sqlite", "asyncmy"):
        report = await copy(there, await new(kind), verify=True)
        assert set(report.notes) == {
            "a.n: left out its default nextval('a_n_seq'::regclass)",
            "a.m: left out its default nextval('shared'::regclass)",
            "b.i: left out its numbering",
            "e.b: left out its numbering",
            "d.name: left out its default 'd'::text || nextval('\"My Names\"'::regclass)",
        }


@pytest.mark.servers
async def test_numbers_of_mariadb(new):
    """Of a column that is no primary key, and of an unsigned one, which Django and others make."""
    there = await new("asyncmy")
    await ask(
        there,
        "CREATE TABLE a (id integer PRIMARY KEY, n integer AUTO_INCREMENT UNIQUE)",
        "CREATE TABLE b (id BIGINT UNSIGNED PRIMARY KEY AUTO_INCREMENT, "
        "up BIGINT UNSIGNED REFERENCES b (id))",
        "INSERT INTO a (id) VALUES (1)",
        "INSERT INTO b VALUES (1, 1)",
    )
    here = await new("psycopg")
    assert not (await copy(there, here, verify=True)).notes
    assert await ask(here, "INSERT INTO a (id) VALUES (4) RETURNING n") == [(2,)]
    assert await ask(here, "INSERT INTO b (up) VALUES (1) RETURNING id") == [(2,)]
    report = await copy(there, await new("sqlite"), verify=True)
    assert report.notes == ("a.n: left out its numbering",)


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["sqlite", "asyncmy"])
async def test_defaults_of_postgresql(new, kind):
    """It writes them with their types."""
    there, here = await new("psycopg"), await new(kind)
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, a numeric(6, 2) DEFAULT 0, b integer DEFAULT -1, "
        "c boolean DEFAULT true, d varchar(9) DEFAULT 'd', e uuid DEFAULT "
        "'00000000-0000-0000-0000-00000000000f', f date DEFAULT '2024-01-02', g float8 DEFAULT .5)",
    )
    assert not (await copy(there, here, verify=True)).notes
    await ask(here, "INSERT INTO t (id) VALUES (1)")
    ((*found, key, day),) = await ask(here, "SELECT a, b, c, d, g, e, f FROM t")
    assert found == [0, -1, True, "d", 0.5]
    assert (UUID(key), str(day)) == (UUID(int=15), "2024-01-02")


BACKSLASHES = {
    "sqlite": r"a varchar(9) DEFAULT 'a\bc', b varchar(9) DEFAULT 'it''s', c blob DEFAULT '\n'",
    "psycopg": r"a varchar(9) DEFAULT 'a\bc', b varchar(9) DEFAULT 'it''s', c bytea",
    "asyncmy": r"a varchar(9) DEFAULT 'a\\bc', b varchar(9) DEFAULT 'it''s', c varbinary(9)",
}


@pytest.mark.servers
@pytest.mark.parametrize("source", BACKSLASHES)
@pytest.mark.parametrize("target", BACKSLASHES)
async def test_backslashes_and_quotes_in_defaults(new, source, target):
    """They mean other things in the literals of MySQL, and the same in the new column."""
    there, here = await new(source), await new(target)
    await ask(there, f"CREATE TABLE t (id integer PRIMARY KEY, {BACKSLASHES[source]})")
    report = await copy(there, here)
    assert all(note.startswith("t.c: left out its default") for note in report.notes)
    for url in (there, here):
        await ask(url, "INSERT INTO t (id) VALUES (1)")
        assert await ask(url, "SELECT a, b FROM t") == [(r"a\bc", "it's")]
    if (source, target) == ("sqlite", "psycopg"):
        assert await ask(here, "SELECT c FROM t") == [(rb"\n",)]


NAMES = """
CREATE TABLE places (id INTEGER PRIMARY KEY, x INTEGER, CONSTRAINT uq UNIQUE (x));
CREATE TABLE more (id INTEGER PRIMARY KEY, x INTEGER, place INTEGER,
    CONSTRAINT uq UNIQUE (x), CONSTRAINT fk FOREIGN KEY (place) REFERENCES places (id));
CREATE TABLE most (id INTEGER PRIMARY KEY, place INTEGER,
    CONSTRAINT fk FOREIGN KEY (place) REFERENCES places (id));
CREATE INDEX i_that_has_a_name_which_is_longer_than_any_name_may_be_on_a_server ON more (place);
"""


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
async def test_names_of_constraints_that_are_used_twice(new, tmp_path, kind):
    """In SQLite they mean nothing. PostgreSQL and MariaDB have one set of names each."""
    here = await new(kind)
    await copy(made(tmp_path / "s.db", NAMES), here)
    for table in ("places", "more"):
        await ask(here, f"INSERT INTO {table} (id, x) VALUES (1, 1)")
        with pytest.raises(IntegrityError):
            await ask(here, f"INSERT INTO {table} (id, x) VALUES (2, 1)")
    for table in ("more", "most"):
        with pytest.raises(IntegrityError):
            await ask(here, f"INSERT INTO {table} (id, place) VALUES (3, 7)")


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["sqlite", "psycopg"])
async def test_indexes_and_enums_that_are_called_like_tables(new, kind):
    """MariaDB calls the index of a foreign key after its column, which may be called as a table."""
    there, here = await new("asyncmy"), await new(kind)
    await ask(
        there,
        "CREATE TABLE owner (id integer PRIMARY KEY)",
        "CREATE TABLE a (id integer PRIMARY KEY, owner integer, b_c ENUM ('x'), "
        "FOREIGN KEY (owner) REFERENCES owner (id))",
        "CREATE TABLE a_b (c ENUM ('y'), d ENUM ('z'))",
        "CREATE TABLE a_b_d (id integer)",
        "INSERT INTO a VALUES (1, NULL, 'x')",
        "INSERT INTO a_b VALUES ('y', 'z')",
    )
    assert (await copy(there, here, verify=True)).rows == 2


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
async def test_defaults_that_the_type_does_not_take(new, tmp_path, kind):
    """SQLite takes any for any type. What means the same is kept, the rest is named."""
    here = await new(kind)
    script = """
    CREATE TABLE t (id INTEGER PRIMARY KEY, a INTEGER DEFAULT TRUE, b INTEGER DEFAULT '',
        c DATETIME DEFAULT 0, d INTEGER DEFAULT '7', e BOOLEAN DEFAULT 'f', f VARCHAR(2) DEFAULT 5,
        g DATE DEFAULT CURRENT_DATE,
        h INTEGER DEFAULT CURRENT_TIMESTAMP, i DECIMAL(4, 1) DEFAULT .5,
        j VARCHAR(2) DEFAULT 'long', k JSON DEFAULT 5, l VARCHAR(50) DEFAULT CURRENT_TIMESTAMP);
    """
    report = await copy(made(tmp_path / "s.db", script), here)
    expected = {
        "t.b: left out its default ''",
        "t.c: left out its default 0",
        "t.h: left out its default CURRENT_TIMESTAMP",
        "t.j: left out its default 'long'",
    }
    if kind == "asyncmy":
        expected.add("t.k: left out its default 5")
    assert set(report.notes) == expected
    await ask(here, "INSERT INTO t (id) VALUES (1)")
    ((*found, day),) = await ask(here, "SELECT a, b, d, e, f, i, g FROM t")
    assert found == [1, None, 7, False, "5", Decimal("0.5")]
    assert isinstance(day, date)


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
async def test_types_that_only_the_program_of_the_file_knows(new, tmp_path, kind):
    """They get a type by what they hold; without rows, that of the column they refer to."""
    here, key = await new(kind), "3f2504e0-4f89-11d3-9a0c-0305e82c3301"
    script = f"""
    CREATE TABLE t (id UUID PRIMARY KEY, a STRING(20) UNIQUE, b email, c MONEY(10, 2), d bytes,
        e STRING);
    INSERT INTO t VALUES ('{key}', '007x', 'a@b.c', 12.5, x'00ff', 7),
        ('x', 'é', NULL, 1, NULL, 'y');
    CREATE TABLE u (id INTEGER PRIMARY KEY, t UUID REFERENCES t (id));
    CREATE TABLE v (id INTEGER PRIMARY KEY, n MONEY);
    """
    source = made(tmp_path / "s.db", script)
    assert (await copy(source, here, verify=True)).rows == 2
    first = (key, "007x", "a@b.c", Decimal("12.5"), b"\x00\xff", "7")
    second = ("x", "é", None, Decimal(1), None, "y")
    assert set(await ask(here, "SELECT id, a, b, c, d, e FROM t")) == {first, second}
    await ask(here, f"INSERT INTO u VALUES (1, '{key}')", "INSERT INTO v VALUES (1, 2.5)")
    with pytest.raises(IntegrityError):
        await ask(here, "INSERT INTO u VALUES (2, 'z')")


@pytest.mark.servers
@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize(
    "script",
    [
        """
        CREATE TABLE v (id UUID PRIMARY KEY REFERENCES w (id));
        CREATE TABLE u (id UUID PRIMARY KEY REFERENCES v (id));
        CREATE TABLE w (id UUID PRIMARY KEY);
        INSERT INTO w VALUES ('abc');
        """,
        """
        CREATE TABLE p (p STRING PRIMARY KEY);
        CREATE TABLE q (id INTEGER PRIMARY KEY, p STRING REFERENCES p (p));
        INSERT INTO p VALUES ('7'), ('x');
        INSERT INTO q VALUES (1, '7');
        """,
    ],
    ids=["empty tables", "numbers among texts"],
)
async def test_foreign_keys_of_types_that_only_the_program_knows(new, tmp_path, kind, script):
    """A column has the type of the one it refers to, so that the key is kept."""
    report = await copy(made(tmp_path / "s.db", script), await new(kind), verify=True)
    assert report.notes == ()


@pytest.mark.servers
async def test_sets_of_mariadb(new):
    """A value has several members, so it may be longer than the longest of them."""
    there = await new("asyncmy")
    await ask(
        there,
        "CREATE TABLE t (id integer PRIMARY KEY, tags SET ('a', 'bb', 'c'))",
        "INSERT INTO t VALUES (1, 'a,bb,c')",
    )
    for kind in ("asyncmy", "psycopg"):
        here = await new(kind)
        await copy(there, here, verify=True)
        assert (await ask(here, "SELECT tags FROM t"))[0][0] in ("a,bb,c", {"a", "bb", "c"})


COUNTING = {
    "sqlite": "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, x INTEGER)",
    "psycopg": "CREATE TABLE t (id serial PRIMARY KEY, x integer)",
    "asyncmy": "CREATE TABLE t (id INTEGER PRIMARY KEY AUTO_INCREMENT, x INTEGER)",
}


@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("target", EVERYWHERE)
@pytest.mark.parametrize("source", EVERYWHERE)
async def test_numbers_of_deleted_rows_are_not_given_again(new, source, target, kept):
    """What was number 3 may be known elsewhere: the source would go on with 4, so the copy does."""
    there, here = await new(source), await new(target)
    await ask(there, COUNTING[source], "INSERT INTO t (x) VALUES (1), (2), (3)")
    await ask(there, f"DELETE FROM t WHERE id > {kept}")
    await ask(here, COUNTING[target])
    report = await copy(there, here, verify=True)
    assert (report.rows, report.notes) == (kept, ())
    await ask(here, "INSERT INTO t (x) VALUES (4)")
    assert await ask(here, "SELECT max(id) FROM t") == [(4,)]


@pytest.mark.parametrize("target", EVERYWHERE)
async def test_numbers_below_zero(new, tmp_path, target):
    """The source has rows with negative numbers only, and counts on from 1, as the copy does."""
    script = "CREATE TABLE t (id INTEGER PRIMARY KEY, x INTEGER); INSERT INTO t VALUES (-5, 1);"
    here = await new(target)
    await copy(made(tmp_path / "s.db", script), here, verify=True)
    assert await ask(here, "SELECT id FROM t") == [(-5,)]
    await ask(here, "DELETE FROM t", "INSERT INTO t (x) VALUES (4)")
    assert (await ask(here, "SELECT id FROM t"))[0][0] > 0


@pytest.mark.servers
async def test_numbers_that_cannot_be_set(new, tmp_path):
    """To alter a table is another right on MariaDB than to write to it: the copy is complete."""
    here = await new("asyncmy")
    script = f"""{COUNTING["sqlite"]};
    INSERT INTO t (x) VALUES (1), (2), (3);
    DELETE FROM t WHERE id = 3;
    """
    source = made(tmp_path / "s.db", script)
    user = f"qsession_copy_{os.getpid()}"
    await ask(
        here,
        COUNTING["asyncmy"],
        f"CREATE USER {user}@'%' IDENTIFIED BY 'secret'",
        f"GRANT SELECT, INSERT, DELETE ON {make_url(here).database}.* TO {user}@'%'",
    )
    url = make_url(here).set(username=user, password="secret")
    try:
        report = await copy(source, url.render_as_string(hide_password=False), verify=True)
    finally:
        await ask(here, f"DROP USER {user}@'%'")
    (note,) = report.notes
    assert note.startswith("not done: ALTER TABLE t AUTO_INCREMENT = 4. The database says: ")
    assert await ask(here, "SELECT count(*) FROM t") == [(2,)]


@pytest.mark.servers
async def test_what_postgresql_has_beside_tables(new):
    """It is named, also between two databases of its kind."""
    there, here = await new("psycopg"), await new("psycopg")
    await ask(
        there,
        "CREATE TABLE t (id int PRIMARY KEY, at int4range, EXCLUDE USING gist (at WITH &&), "
        "n int, CONSTRAINT once UNIQUE (n) DEFERRABLE)",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'",
        "CREATE TRIGGER tg BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
        "CREATE RULE ru AS ON DELETE TO t DO INSTEAD NOTHING",
        "CREATE MATERIALIZED VIEW mv AS SELECT 1",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
    )
    assert (await copy(there, here)).notes == (
        "mv: left out, as it is a materialized view",
        "t: left out DEFERRABLE of the constraint once",
        "t: left out its row-level security",
        "t: left out the exclusion constraint t_at_excl",
        "t: left out the rule ru",
        "t: left out the trigger tg",
    )


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["asyncmy", "psycopg"])
async def test_what_mariadb_has_beside_tables(new, kind):
    """It is named, also between two databases of its kind; a sequence is that of the source."""
    there, here = await new("asyncmy"), await new(kind)
    if "Maria" not in str(await ask(there, "SELECT version()")):
        pytest.skip("MySQL has no sequences")
    await ask(
        there,
        "CREATE SEQUENCE s",
        "CREATE TABLE t (id int PRIMARY KEY DEFAULT nextval(s), v int INVISIBLE)",
        "CREATE TRIGGER tg BEFORE INSERT ON t FOR EACH ROW SET new.v = 1",
        "INSERT INTO t () VALUES ()",
    )
    trigger, default, invisible = (await copy(there, here, verify=True)).notes
    assert trigger == "t: left out the trigger tg"
    assert default.startswith("t.id: left out its default nextval(")
    assert invisible == "t.v: left out its attribute INVISIBLE"
    assert await ask(here, "SELECT id, v FROM t") == [(1, 1)]


@pytest.mark.servers
async def test_numbering_of_what_is_no_key(new):
    """SQLAlchemy does not make it, so it is named."""
    there, here = await new("asyncmy"), await new("asyncmy")
    await ask(there, "CREATE TABLE t (id int PRIMARY KEY, n int AUTO_INCREMENT UNIQUE)")
    assert (await copy(there, here)).notes == ("t.n: left out its numbering",)


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg"])
async def test_how_sequences_count(new, kind):
    """A new table goes on as the old one does, in its steps and within its bounds."""
    there, here = await new(kind), await new(kind)
    await ask(
        there,
        "CREATE SEQUENCE tens INCREMENT 10 START 7",
        'CREATE SEQUENCE "Down %" AS integer INCREMENT -1',
        "CREATE TABLE a (id bigint PRIMARY KEY DEFAULT nextval('tens'), n smallserial)",
        """CREATE TABLE b (id int PRIMARY KEY DEFAULT nextval('"Down %"'), n int)""",
        'CREATE TABLE "C c" (id bigserial PRIMARY KEY, n int)',
        'ALTER SEQUENCE "C c_id_seq" INCREMENT 2 CYCLE MAXVALUE 1000',
        "CREATE TABLE d (id serial PRIMARY KEY, n int)",
        *(f"INSERT INTO {each} (n) VALUES (1), (2)" for each in ("a", "b", '"C c"', "d")),
    )
    assert not (await copy(there, here, verify=True)).notes
    options = (
        "SELECT s.relname, seqtypid, seqincrement, seqmin, seqmax, seqstart, seqcycle, "
        "refobjid::regclass::text FROM pg_sequence JOIN pg_class s ON s.oid = seqrelid "
        "LEFT JOIN pg_depend p ON p.objid = s.oid AND p.deptype = 'a' "
        "WHERE s.relname <> 'a_n_seq' ORDER BY 1"
    )
    assert await ask(here, options) == await ask(there, options)
    for each in ("a", "b", '"C c"', "d"):
        insert = f"INSERT INTO {each} (n) VALUES (3) RETURNING id"
        assert await ask(here, insert) == await ask(there, insert)
