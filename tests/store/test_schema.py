from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from relaycore.errors import ConfigError, ServerBusy
from relaycore.store import schema
from relaycore.store.schema import APPLICATION_ID, explain, open_database, statements, transaction


def pragma(connection: sqlite3.Connection, name: str) -> object:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestOpening:
    def test_a_new_file_and_its_directory_are_private(self, tmp_path):
        path = tmp_path / "data" / "store.db"
        connection = open_database(path)
        connection.execute("UPDATE store SET version = 1")
        assert mode(path.parent) == 0o700
        assert {mode(one) for one in path.parent.iterdir()} == {0o600}
        assert len(list(path.parent.iterdir())) == 3
        connection.close()

    def test_a_wide_umask_does_not_make_it_readable(self, tmp_path):
        former = os.umask(0)
        try:
            open_database(tmp_path / "data" / "store.db").close()
        finally:
            os.umask(former)
        assert mode(tmp_path / "data") == 0o700
        assert mode(tmp_path / "data" / "store.db") == 0o600

    def test_what_is_there_keeps_its_mode(self, tmp_path):
        path = tmp_path / "store.db"
        path.touch()
        path.chmod(0o640)
        open_database(path).close()
        assert mode(path) == 0o640

    def test_what_is_committed_is_on_the_disk(self, tmp_path):
        """failures: definitions survive kill -9 and a power cut: WAL, synchronous=FULL."""
        connection = open_database(tmp_path / "store.db")
        assert pragma(connection, "journal_mode") == "wal"
        assert pragma(connection, "synchronous") == 2
        assert pragma(connection, "foreign_keys") == 1
        assert pragma(connection, "secure_delete") == 1
        assert pragma(connection, "application_id") == APPLICATION_ID
        connection.close()

    def test_the_text_of_the_application_id(self):
        assert APPLICATION_ID.to_bytes(4, "big") == b"RLCS"

    def test_a_store_in_memory_leaves_no_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        open_database(":memory:").close()
        assert list(tmp_path.iterdir()) == []

    def test_all_tables_are_strict(self):
        connection = open_database(":memory:")
        tables = connection.execute(
            "SELECT name, strict FROM pragma_table_list WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        assert len(tables) == 5
        assert all(strict == 1 for _, strict in tables)
        connection.close()


class TestRefusing:
    def test_a_file_that_is_no_database(self, tmp_path):
        path = tmp_path / "store.db"
        path.write_bytes(b"not a database at all, but long enough for a header of one" * 100)
        with pytest.raises(ConfigError, match="not a store, or it is damaged") as caught:
            open_database(path)
        assert caught.value.source == str(path)
        assert "restore a copy" in str(caught.value)

    def test_a_damaged_store(self, tmp_path):
        path = tmp_path / "store.db"
        connection = open_database(path)
        connection.executemany(
            "INSERT INTO namespaces (name, name_key, created_at, updated_at, revision) VALUES (?1, ?1, 0, 0, 1)",
            [(f"{n:0200}",) for n in range(200)],
        )
        connection.close()
        whole = bytearray(path.read_bytes())
        for at in range(8192 * 2, len(whole) - 64, 4096):
            whole[at : at + 64] = b"\xff" * 64
        path.write_bytes(whole)
        with pytest.raises(ConfigError, match="damaged") as caught:
            open_database(path)
        assert caught.value.source == str(path)

    def test_a_database_of_another_program(self, tmp_path):
        path = tmp_path / "store.db"
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE theirs (x)")
        other.close()
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="another program"):
            open_database(path)
        assert path.read_bytes() == before

    def test_a_store_of_a_newer_relaycore(self, tmp_path):
        path = tmp_path / "store.db"
        connection = open_database(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
        with pytest.raises(ConfigError, match=r"newer relaycore \(schema 99, this one knows 1\)") as caught:
            open_database(path)
        assert caught.value.source == str(path)

    def test_a_directory_in_its_place(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot be opened for writing") as caught:
            open_database(tmp_path)
        assert caught.value.source == str(tmp_path)

    def test_a_file_in_the_place_of_its_directory(self, tmp_path):
        (tmp_path / "data").touch()
        with pytest.raises(ConfigError, match="cannot be opened"):
            open_database(tmp_path / "data" / "store.db")

    def test_a_file_that_sqlite_does_not_open(self, tmp_path, monkeypatch):
        def fail(*arguments: object, **options: object) -> None:
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error

        monkeypatch.setattr(sqlite3, "connect", fail)
        with pytest.raises(ConfigError, match="unable to open"):
            open_database(tmp_path / "store.db")

    def test_a_store_that_another_process_holds(self, tmp_path):
        path = tmp_path / "store.db"
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ServerBusy, match="another process"):
            open_database(path, busy_timeout_s=0.0)
        other.close()
        open_database(path).close()


class TestMigrations:
    def test_they_are_applied_once(self, tmp_path):
        path = tmp_path / "store.db"
        connection = open_database(path)
        connection.execute("UPDATE store SET version = 7")
        connection.close()
        connection = open_database(path)
        assert schema.schema_version(connection) == len(schema.migrations())
        assert connection.execute("SELECT version FROM store").fetchone() == (7,)
        connection.close()

    def test_each_is_applied_whole_or_not_at_all(self, tmp_path, monkeypatch):
        """failures: killed or failed on the way, the schema is the one before or the one after."""
        steps = schema.migrations()
        bad = (*steps, (len(steps) + 1, "CREATE TABLE fine (x);\nCREATE TABLE store (x);\n"))
        path = tmp_path / "store.db"
        with monkeypatch.context() as patch:
            patch.setattr(schema, "migrations", lambda: bad)
            with pytest.raises(ServerBusy, match="already exists"):
                open_database(path)
        connection = open_database(path)
        assert schema.schema_version(connection) == len(steps)
        assert connection.execute("SELECT name FROM sqlite_schema WHERE name = 'fine'").fetchone() is None
        connection.close()

    @pytest.mark.parametrize("start", range(len(schema.migrations())))
    def test_each_old_schema_is_brought_up_to_date(self, tmp_path, monkeypatch, start):
        path = tmp_path / "store.db"
        first_steps = schema.migrations()[:start]
        with monkeypatch.context() as patch:
            patch.setattr(schema, "migrations", lambda: first_steps)
            open_database(path).close()
        connection = open_database(path)
        assert schema.schema_version(connection) == len(schema.migrations())
        connection.close()

    def test_another_process_may_be_faster(self, tmp_path):
        """Both see the old schema; the one that gets the lock second finds the work done."""
        path = tmp_path / "store.db"
        one = sqlite3.connect(path, isolation_level=None)
        real = schema.schema_version
        seen: list[int] = []

        def version_before_the_other(connection: sqlite3.Connection) -> int:
            seen.append(real(connection))
            if len(seen) == 2:  # looked at outside the transaction; now the other one comes
                open_database(path).close()
            return seen[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schema, "schema_version", version_before_the_other)
            schema._migrate(one, str(path))
        assert real(one) == len(schema.migrations())
        one.close()

    def test_a_script_is_cut_into_its_statements(self):
        script = "-- words; more words\nCREATE TABLE a (\n x -- ; not here\n);\nINSERT INTO a VALUES (';');\n"
        assert [one.strip().splitlines()[-1] for one in statements(script)] == [");", "INSERT INTO a VALUES (';');"]


class TestTransactions:
    def test_an_exception_rolls_back(self):
        connection = open_database(":memory:")

        def fail() -> None:
            with transaction(connection):
                connection.execute("UPDATE store SET version = 9")
                raise KeyError("x")

        with pytest.raises(KeyError):
            fail()
        assert connection.execute("SELECT version FROM store").fetchone() == (0,)
        assert not connection.in_transaction
        connection.close()

    @pytest.mark.parametrize("is_still_open", [True, False])
    def test_a_failed_commit_leaves_no_transaction(self, is_still_open):
        class Failing:
            in_transaction = is_still_open

            def __init__(self):
                self.heard = []

            def execute(self, sql):
                self.heard.append(sql)
                if sql == "COMMIT":
                    raise sqlite3.OperationalError("database or disk is full")

        connection = Failing()
        with pytest.raises(sqlite3.OperationalError), transaction(connection):
            pass
        assert connection.heard == ["BEGIN IMMEDIATE", "COMMIT"] + ["ROLLBACK"] * is_still_open


class TestExplaining:
    @pytest.mark.parametrize(
        ("code", "kind", "text"),
        [
            (sqlite3.SQLITE_BUSY, ServerBusy, "another process"),
            (sqlite3.SQLITE_BUSY_SNAPSHOT, ServerBusy, "another process"),
            (sqlite3.SQLITE_CORRUPT, ConfigError, "damaged"),
            (sqlite3.SQLITE_NOTADB, ConfigError, "damaged"),
            (sqlite3.SQLITE_CANTOPEN, ConfigError, "cannot be opened"),
            (sqlite3.SQLITE_FULL, ServerBusy, "disk is full"),
            (None, ServerBusy, "disk is full"),
        ],
    )
    def test_the_class_says_who_can_do_something_about_it(self, code, kind, text):
        error = sqlite3.OperationalError("database or disk is full")
        if code is not None:
            error.sqlite_errorcode = code
        explained = explain(error, "store.db")
        assert type(explained) is kind
        assert text in str(explained)
