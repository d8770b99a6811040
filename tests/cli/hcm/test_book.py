"""Settings as commands change them."""

from __future__ import annotations

import dataclasses

import pytest

from relaycore.cli.exits import ExitCode, StartupError
from relaycore.cli.hcm.book import SettingsBook
from relaycore.edge.config.load import hcm_connection_from_string
from relaycore.errors import ConfigError

STRING = "Endpoint=sb://relay.example/;SharedAccessKeyName=r;SharedAccessKey=a2V5;EntityPath=orders"
BY_HAND = '[[hcm.connection]]\nname = "hand"\nrelay = "main"\n[relay.main]\nendpoint = "sb://relay.example/"\n'


@pytest.fixture
def connection():
    return hcm_connection_from_string(STRING)


@pytest.fixture
def book(tmp_path):
    (tmp_path / "relaycore.toml").write_text(BY_HAND)
    return SettingsBook(environ={"RELAYCORE_CONFIG": str(tmp_path / "relaycore.toml"), "HOME": str(tmp_path)})


def names(book):
    return [one.name for one in book.load().settings.hcm.connections]


def test_what_is_added_lies_beside_and_can_be_taken_out(book, connection, tmp_path):
    path = book.save(connection)
    assert path == tmp_path / "relaycore.d" / "orders.toml"
    assert names(book) == ["hand", "orders"]
    assert book.remove("orders") == path
    assert names(book) == ["hand"]
    assert not path.exists()


def test_the_directory_of_a_service_is_read_and_written(connection, tmp_path):
    (tmp_path / "relaycore.toml").write_text(BY_HAND)
    book = SettingsBook([tmp_path / "relaycore.toml"], saved=tmp_path / "state" / "hcm.d")
    assert names(book) == ["hand"]
    path = book.save(connection)
    assert path == tmp_path / "state" / "hcm.d" / "orders.toml"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert names(book) == ["hand", "orders"]
    book.remove("orders")
    assert names(book) == ["hand"]


def test_a_name_is_taken_once_and_replaced_on_demand(book, connection):
    path = book.save(connection)
    with pytest.raises(StartupError) as caught:
        book.save(connection)
    assert caught.value.exit_code == ExitCode.EXISTS
    other = dataclasses.replace(connection, listeners=3)
    assert book.save(other, replaces=True) == path
    assert book.load().settings.hcm.connections[1].listeners == 3


def test_what_a_person_wrote_is_left_alone(book, connection, tmp_path):
    with pytest.raises(ConfigError, match="not one of relaycore's own files"):
        book.save(dataclasses.replace(connection, name="hand"), replaces=True)
    with pytest.raises(ConfigError, match=r"'hand' stands at .*relaycore.toml:2, which is not one of relaycore's own"):
        book.remove("hand")
    assert (tmp_path / "relaycore.toml").read_text() == BY_HAND


def test_what_comes_from_the_environment_is_said(tmp_path):
    book = SettingsBook(
        environ={
            "HOME": str(tmp_path),
            "XDG_CONFIG_HOME": str(tmp_path),
            "RELAYCORE_CONFIG": str(tmp_path),
            "RELAYCORE__HCM__CONNECTION__0__CONNECTION_STRING": "Endpoint=sb://relay.example/;EntityPath=orders",
            "RELAYCORE__HCM__CONNECTION__0__NAME": "orders",
        }
    )
    with pytest.raises(ConfigError, match="'orders' comes from RELAYCORE__HCM__CONNECTION__0__NAME"):
        book.remove("orders")


def test_settings_that_are_wrong_are_not_added_to(book, connection, tmp_path):
    (tmp_path / "relaycore.toml").write_text("x = 1\n")
    with pytest.raises(ConfigError):
        book.save(connection)
    assert not (tmp_path / "relaycore.d").exists()


def test_an_addition_that_would_be_lost_is_undone(connection, tmp_path):
    # One file that is named outright counts alone where the option says which entries there are.
    (tmp_path / "relaycore.toml").write_text("")
    book = SettingsBook([tmp_path / "relaycore.toml"], ["hcm.connection.0.endpoint=nonsense"])
    with pytest.raises(ConfigError):
        book.save(connection)
    assert not list((tmp_path / "relaycore.d").glob("*.toml")) if (tmp_path / "relaycore.d").exists() else True


def test_the_signature_changes_with_any_file(book, connection, tmp_path):
    seen = [book.signature()]
    assert book.signature() == seen[0]
    book.save(connection)
    seen.append(book.signature())
    (tmp_path / "relaycore.toml").write_text(BY_HAND + "\n")
    seen.append(book.signature())
    book.remove("orders")
    seen.append(book.signature())
    (tmp_path / "relaycore.toml").unlink()
    seen.append(book.signature())
    assert len(set(map(repr, seen))) == len(seen)
