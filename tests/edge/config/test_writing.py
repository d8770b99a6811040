"""Files that commands write: what is in them, who may read them, and that they read back as the same."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from relaycore.edge.config.load import load, remove_connection, write_connection
from relaycore.edge.config.secret import Secret
from relaycore.edge.config.settings import (
    METADATA,
    DialSettings,
    EndpointOrder,
    Forward,
    HcmConnection,
    HealthSettings,
    LimitSettings,
    ListenAt,
    OnDown,
    PortBinding,
    Probe,
    Profile,
    RelaySettings,
    RetrySettings,
    Target,
)
from relaycore.errors import ConfigError

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
RELAY = RelaySettings("", "sb://relay.example:9443/")
CONNECTION = HcmConnection("orders", RELAY, "orders", key_name="r", key=Secret("inline", KEY))
FORWARD = Forward("orders", RELAY, "orders", key_name="r", key=Secret("file", "/k"))


def read(path: Path):
    settings = load([path], {}).settings
    return [*settings.hcm.connections, *settings.connect.forwards]


def test_a_file_is_private_and_so_is_its_directory(tmp_path):
    path = tmp_path / "relaycore" / "relaycore.d" / "orders.toml"
    before = os.umask(0o000)
    try:
        write_connection(path, CONNECTION)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]
    assert read(path) == [CONNECTION]


def test_an_entry_takes_the_place_of_the_one_with_its_name(tmp_path):
    path = tmp_path / "x.toml"
    write_connection(path, CONNECTION)
    write_connection(path, FORWARD)
    write_connection(path, replace(CONNECTION, name="other"))
    write_connection(path, replace(CONNECTION, is_paused=True, listeners=2))
    assert read(path) == [
        replace(CONNECTION, is_paused=True, listeners=2),
        replace(CONNECTION, name="other"),
        FORWARD,
    ]


def test_the_file_goes_with_its_last_entry(tmp_path):
    path = tmp_path / "x.toml"
    assert not remove_connection(path, CONNECTION)
    write_connection(path, CONNECTION)
    write_connection(path, FORWARD)
    assert not remove_connection(path, replace(CONNECTION, name="other"))
    assert remove_connection(path, CONNECTION)
    assert read(path) == [FORWARD]
    assert remove_connection(path, FORWARD)
    assert not path.exists()


def test_a_person_s_file_is_left_alone(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("# mine\n")
    for change in (write_connection, remove_connection):
        with pytest.raises(ConfigError, match="not one of relaycore's own files"):
            change(path, CONNECTION)
    assert path.read_text() == "# mine\n"


def test_a_file_of_ours_that_somebody_broke_is_named(tmp_path):
    path = tmp_path / "x.toml"
    write_connection(path, CONNECTION)
    with path.open("a") as file:
        file.write("[")
    with pytest.raises(ConfigError, match="is not TOML"):
        write_connection(path, CONNECTION)


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_connection(tmp_path / "file" / "x.toml", CONNECTION)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        write_connection(tmp_path / "x.toml", CONNECTION)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_named_relay_stays_a_name(tmp_path):
    path = tmp_path / "x.toml"
    write_connection(path, replace(CONNECTION, relay=RelaySettings("main", "sb://relay.example/"), path="a/b"))
    text = path.read_text()
    assert 'relay = "main"' in text
    assert 'path = "a/b"' in text
    assert "connection_string" not in text


hosts = st.sampled_from(["a", "b.example", "10.0.0.1", "::1"])
ports = st.integers(1, 65_535)
targets = st.one_of(st.builds(Target, hosts, ports), st.just(Target(path="/run/x y")))
several_targets = st.lists(targets, min_size=1, max_size=3).map(tuple)
names = st.text("abcXYZ0189._-/", min_size=1, max_size=8).filter(lambda name: name.strip("/") == name)
spans = st.integers(10, 28_000).map(lambda ms: ms / 1000)
secrets = st.builds(Secret, st.sampled_from(["file", "env", "credential", "inline"]), st.just("/x"))
relays = st.builds(
    RelaySettings,
    st.just(""),
    st.just("sb://127.0.0.1:1/"),
    cafile=st.none() | st.just(Path("/ca.pem")),
    proxy=st.sampled_from(["env", "none", "http://user:password@proxy:1"]),
    keep_alive_s=st.integers(1, 100).map(float),
    is_emulator=st.booleans(),
)
signers = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"key_name": names, "key": secrets}),
    st.fixed_dictionaries({"token": secrets}),
)
probes = st.one_of(
    st.builds(Probe, st.sampled_from(["none", "tcp", "tls"])),
    st.builds(Probe, st.just("http"), path=st.just("/up")),
    st.builds(Probe, st.just("exchange"), send=st.binary(min_size=1, max_size=4), expect=st.binary(max_size=4)),
    st.builds(Probe, st.just("command"), command=st.lists(names, min_size=1, max_size=3).map(tuple)),
)
where = st.one_of(
    st.just({"targets": METADATA}),
    st.fixed_dictionaries({"targets": several_targets}),
    st.just({"profile": Profile.HTTP, "http_url": "http://localhost:8080/x"}),
    st.fixed_dictionaries(
        {
            "profile": st.just(Profile.AZBRIDGE),
            "ports": st.lists(
                st.builds(PortBinding, names, several_targets, st.booleans()),
                min_size=1,
                max_size=3,
                unique_by=lambda port: port.name,
            ).map(tuple),
        }
    ),
)
connections = st.builds(
    lambda basic, signer, place: HcmConnection(**basic, **signer, **place),
    st.fixed_dictionaries(
        {
            "name": names,
            "relay": relays,
            "path": names,
            "listeners": st.integers(1, 25),
            "early_reply": st.booleans(),
            "is_paused": st.booleans(),
            "dial": st.builds(
                DialSettings,
                timeout_s=spans,
                order=st.sampled_from(EndpointOrder),
                source=st.none() | st.just("::1"),
                proxy_protocol=st.integers(0, 2),
            ),
            "health": st.builds(HealthSettings, probe=probes, timeout_s=spans, on_down=st.sampled_from(OnDown)),
            "limits": st.builds(LimitSettings, rate_in=st.integers(0, 1 << 40), burst=st.integers(1, 1 << 30)),
        }
    ),
    signers,
    where,
)
listeners = st.one_of(
    st.builds(ListenAt, st.just("tcp"), st.sampled_from(["auto", "127.0.0.1", "::1"]), ports),
    st.builds(
        ListenAt,
        st.just("unix"),
        path=st.just("/run/x"),
        mode=st.sampled_from([0o600, 0o666]),
        owner=st.sampled_from(["", "app"]),
        group=st.sampled_from(["", "1000"]),
    ),
)
forwards = st.builds(
    lambda basic, signer: Forward(**basic, **signer),
    st.fixed_dictionaries(
        {
            "name": names,
            "relay": relays,
            "path": names,
            "profile": st.sampled_from([Profile.RAW, Profile.AZBRIDGE]),
            "hosts": st.lists(hosts, max_size=3).map(tuple),
            "port": st.integers(0, 65_535),
            "listen": st.lists(listeners, max_size=3, unique_by=lambda at: (at.host, at.port, at.path)).map(tuple),
            "port_name": st.just("") | names,
            "fail_fast": st.booleans(),
            "retry": st.builds(RetrySettings, spans, st.integers(1, 9)),
            "idle_timeout_s": spans,
        }
    ),
    signers,
)


@pytest.fixture
def in_memory(monkeypatch):
    """Does not wait for a disk hundreds of times."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(entry=connections | forwards)
def test_what_is_written_reads_back_as_the_same(in_memory, tmp_path, entry):
    path = tmp_path / "x.toml"
    path.unlink(missing_ok=True)
    write_connection(path, entry)
    assert read(path) == [entry]


def test_a_file_that_cannot_go_or_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "x.toml"
    write_connection(path, CONNECTION)

    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(ConfigError, match="cannot be removed: Permission denied"):
            remove_connection(path, CONNECTION)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fail)
        with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
            write_connection(path, CONNECTION)
    assert read(path) == [CONNECTION]
