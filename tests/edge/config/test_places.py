"""Where files are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relaycore.edge.config import places
from relaycore.edge.config.places import (
    connect_socket,
    connection_file,
    default_files,
    expand_files,
    hcm_socket,
    main_file,
    runtime_directory,
    state_directory,
)
from relaycore.errors import ConfigError


@pytest.fixture
def as_user(monkeypatch):
    monkeypatch.setattr(places, "_is_root", lambda: False)


@pytest.fixture
def as_root(monkeypatch):
    monkeypatch.setattr(places, "_is_root", lambda: True)


def test_root_and_users_have_their_files_in_their_places(as_user, monkeypatch):
    assert main_file({"HOME": "/home/a"}) == Path("/home/a/.config/relaycore/relaycore.toml")
    assert main_file({"HOME": "/home/a", "XDG_CONFIG_HOME": "/x"}) == Path("/x/relaycore/relaycore.toml")
    assert main_file({"HOME": "/home/a", "XDG_CONFIG_HOME": "relative"}).is_relative_to("/home/a")
    assert connection_file("orders", {"HOME": "/home/a"}) == Path("/home/a/.config/relaycore/relaycore.d/orders.toml")
    monkeypatch.setattr(places, "_is_root", lambda: True)
    assert main_file({"HOME": "/root"}) == Path("/etc/relaycore/relaycore.toml")


def test_without_a_home_there_is_no_place(as_user, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="no home directory"):
        main_file({})


def test_a_file_is_followed_by_the_directory_beside_it(as_user, tmp_path):
    main = tmp_path / "relaycore" / "relaycore.toml"
    beside = main.with_name("relaycore.d")
    beside.mkdir(parents=True)
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert default_files(environ) == []
    for name in ("b.toml", "a.toml", ".hidden.toml", "other.txt"):
        (beside / name).touch()
    (beside / "directory.toml").mkdir()
    assert default_files(environ) == [beside / "a.toml", beside / "b.toml"]
    main.touch()
    assert default_files(environ) == [main, beside / "a.toml", beside / "b.toml"]


def test_a_named_file_counts_whether_it_is_there_or_not(tmp_path):
    named = tmp_path / "other.toml"
    assert default_files({"RELAYCORE_CONFIG": str(named)}) == [named]
    assert connection_file("x", {"RELAYCORE_CONFIG": str(named)}) == tmp_path / "other.d" / "x.toml"


def test_a_named_directory_is_its_own_files(tmp_path):
    (tmp_path / "b.toml").touch()
    assert default_files({"RELAYCORE_CONFIG": str(tmp_path)}) == [tmp_path / "b.toml"]
    assert connection_file("x", {"RELAYCORE_CONFIG": str(tmp_path)}) == tmp_path / "x.toml"
    assert expand_files([tmp_path, tmp_path / "b.toml"]) == [tmp_path / "b.toml"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a/b", "a%2Fb.toml"),
        ("../../x", "%2E.%2F..%2Fx.toml"),
        (".", "%2E.toml"),
        ("..", "%2E..toml"),
        ("ä", "%C3%A4.toml"),
    ],
)
def test_a_name_never_leaves_the_directory(tmp_path, name, file):
    found = connection_file(name, {"RELAYCORE_CONFIG": str(tmp_path)})
    assert found == tmp_path / file
    assert found.resolve().parent == tmp_path.resolve()


def test_a_connection_needs_a_name(tmp_path):
    with pytest.raises(ConfigError, match="needs a name"):
        connection_file("", {"RELAYCORE_CONFIG": str(tmp_path)})


def test_systemd_s_directories_come_first():
    environ = {"RUNTIME_DIRECTORY": "/run/a:/run/b", "STATE_DIRECTORY": "/var/lib/a"}
    assert runtime_directory(environ) == Path("/run/a")
    assert state_directory(environ) == Path("/var/lib/a")
    assert hcm_socket(environ) == Path("/run/a/hcm.sock")
    assert connect_socket(environ) == Path("/run/a/connect.sock")


def test_directories_of_our_own_are_made_and_private(tmp_path):
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    for directory in (runtime_directory(environ), state_directory(environ)):
        assert directory.stat().st_mode & 0o777 == 0o700
    assert runtime_directory(environ) == tmp_path / "relaycore"
    (tmp_path / "relaycore").chmod(0o755)
    assert runtime_directory(environ).stat().st_mode & 0o777 == 0o700


def test_without_a_runtime_directory_one_is_made_among_everybody_s(as_user, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert runtime_directory({}) == tmp_path / f"relaycore-{os.geteuid()}"
    assert state_directory({"HOME": str(tmp_path)}) == tmp_path / ".local" / "state" / "relaycore"


def test_a_trap_among_everybody_s_is_refused(as_user, tmp_path, monkeypatch):
    """Whoever may write to /tmp could lay a link where our directory goes."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"relaycore-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError) as caught:
        runtime_directory({})
    trap = tmp_path / f"relaycore-{os.geteuid()}"
    assert str(caught.value) == (
        f"{trap}: is a symbolic link (to {tmp_path / 'elsewhere'}), which is not followed: another user could have laid"
        " it; remove it, or set RUNTIME_DIRECTORY to a directory of this user"
    )
    assert runtime_directory({"RUNTIME_DIRECTORY": str(trap)}) == trap


def test_what_stands_in_the_way_of_the_state_is_named(as_user, tmp_path):
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    place = tmp_path / "relaycore"
    place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"relaycore: is a symbolic link \(to .*nowhere\).*set STATE_DIRECTORY to"):
        state_directory(environ)
    place.unlink()
    place.touch()
    with pytest.raises(ConfigError, match=r"relaycore: is a file where a directory is wanted; remove it"):
        state_directory(environ)


def test_a_directory_of_somebody_else_is_refused(as_user, tmp_path, monkeypatch):
    (tmp_path / "relaycore").mkdir()
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    with pytest.raises(ConfigError, match=f"is a directory of user {real}, and this program runs as user {real + 1}"):
        runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)})


def test_a_place_where_none_can_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path / "file")})


def test_root_s_own_places(as_root, monkeypatch):
    made = []
    monkeypatch.setattr(places, "_make_private", lambda directory, _: made.append(directory) or directory)
    assert runtime_directory({}) == Path("/run/relaycore")
    assert state_directory({"HOME": "/root"}) == Path("/var/lib/relaycore")
    assert made == [Path("/run/relaycore"), Path("/var/lib/relaycore")]
