"""Addresses of the pool: the same each time, and each only once."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.connect.loopback import LoopbackAddresses, parse_pool
from relaycore.errors import ConfigError

POOL = "127.77.0.0/16"


@given(st.lists(st.text(min_size=1, max_size=20), max_size=60, unique=True))
def test_each_name_has_its_own_address_and_keeps_it(names):
    addresses = LoopbackAddresses(POOL, None)
    found = addresses.assign(names)
    assert set(found) == set(names)
    assert len(set(found.values())) == len(names)
    assert all(ipaddress.ip_address(address) in ipaddress.ip_network(POOL) for address in found.values())
    assert addresses.assign(reversed(names)) == found


def test_an_address_depends_on_the_name_alone_where_none_meet():
    alone = LoopbackAddresses(POOL, None).assign(["orders"])
    assert LoopbackAddresses(POOL, None).assign(["files", "orders"])["orders"] == alone["orders"]


def test_names_that_meet_keep_what_they_were_given(tmp_path):
    """In a pool of two addresses every second name meets another."""
    file = tmp_path / "state" / "loopback.json"
    first = LoopbackAddresses("127.77.0.0/30", file).assign(["a", "b"])
    assert sorted(first.values()) == ["127.77.0.1", "127.77.0.2"]
    assert LoopbackAddresses("127.77.0.0/30", file).assign(["b", "a"]) == first
    assert LoopbackAddresses("127.77.0.0/30", file).assign(["b"]) == {"b": first["b"]}


def test_what_nobody_asks_for_gives_way_once_the_pool_is_full(tmp_path):
    file = tmp_path / "loopback.json"
    LoopbackAddresses("127.77.0.0/30", file).assign(["a", "b"])
    assert len(set(LoopbackAddresses("127.77.0.0/30", file).assign(["c", "d"]).values())) == 2
    with pytest.raises(ConfigError, match="2 addresses, and there are more forwards"):
        LoopbackAddresses("127.77.0.0/30", file).assign(["a", "b", "c"])


def test_another_pool_gives_other_addresses(tmp_path):
    file = tmp_path / "loopback.json"
    LoopbackAddresses(POOL, file).assign(["a"])
    [address] = LoopbackAddresses("127.88.0.0/16", file).assign(["a"]).values()
    assert address.startswith("127.88.")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"addresses": 7}', '{"addresses": {"a": "no address"}}', '{"addresses": {"a": 5}}', "\xff"],
)
def test_a_damaged_file_is_told_and_written_anew(tmp_path, content):
    file = tmp_path / "loopback.json"
    file.write_bytes(content.encode("latin-1"))
    addresses = LoopbackAddresses(POOL, file)
    found = addresses.assign(["a"])
    assert addresses.trouble == ""
    assert json.loads(file.read_text())["addresses"] == found
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_is_trouble_and_no_failure(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    addresses = LoopbackAddresses(POOL, blocked / "loopback.json")
    assert addresses.assign(["a"]) == LoopbackAddresses(POOL, None).assign(["a"])
    assert "cannot be written" in addresses.trouble


def test_two_processes_do_not_give_one_address_twice(tmp_path):
    """failures: two programs that start at once, each with the other's address."""
    file = tmp_path / "loopback.json"
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            try:
                for name in range(20):
                    LoopbackAddresses("127.77.0.0/24", file).assign([f"{number}.{name}"])
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    found = json.loads(file.read_text())["addresses"]
    assert len(found) == len(set(found.values())) == 80
    assert not [path for path in Path(tmp_path).iterdir() if path.name not in ("loopback.json", "loopback.lock")]


@pytest.mark.parametrize("text", ["", "10.0.0.0/8", "127.0.0.0/31", "127.0.0.1/16", "::1/128", "x"])
def test_a_pool_lies_below_127(text):
    with pytest.raises(ConfigError, match="pool"):
        parse_pool(text)
