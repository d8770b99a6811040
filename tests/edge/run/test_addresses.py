from __future__ import annotations

import dataclasses
import random
import socket

import pytest

from relaycore.edge.config.settings import ConnectSettings, Forward, ListenAt, RelaySettings
from relaycore.edge.connect.loopback import LoopbackAddresses
from relaycore.edge.run import addresses
from relaycore.edge.run.addresses import for_run
from relaycore.edge.run.modes import RunMode

RELAY = RelaySettings("", "sb://127.0.0.1:1/", is_emulator=True)
AUTO = ListenAt("tcp", "auto")
FIXED = ListenAt("tcp", "127.0.0.1", 5433)
PORTS = (("a", 18_434), ("b", 18_435))


def forward(*listen: ListenAt) -> Forward:
    return Forward("a", RELAY, "a", port=18_433, listen=listen)


def test_fixed_addresses_are_for_a_network_of_its_own():
    settings = ConnectSettings((forward(FIXED, ListenAt("unix", path="/run/a.sock")),))
    assert for_run(settings, RunMode.HOSTS).forwards[0].listen == (AUTO,)
    assert for_run(settings, RunMode.ISOLATED).forwards[0].listen == (AUTO, FIXED)


@pytest.mark.parametrize("mode", [RunMode.HOSTS, RunMode.ISOLATED])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_port_that_settings_choose_is_kept_beside_the_endpoints(mode: RunMode, kind: str):
    """The names are announced with the endpoint's port."""
    chosen = ListenAt(kind, "auto", 15_433)
    assert for_run(ConnectSettings((forward(chosen),)), mode).forwards[0].listen == (ListenAt(kind, "auto"), chosen)


def test_a_part_of_the_pool_is_chosen_in_which_the_addresses_are_free():
    first = addresses._free_subnet("127.77.0.0/16", [forward(AUTO)], random.Random(1))
    address = LoopbackAddresses(first, None).assign(["a"])["a"]
    with socket.socket() as taken:
        taken.bind((address, 18_433))
        taken.listen()
        assert addresses._free_subnet("127.77.0.0/16", [forward(AUTO)], random.Random(1)) != first


def test_a_part_of_the_pool_is_free_at_shared_addresses_too():
    settings = [dataclasses.replace(forward(AUTO), name=name, hosts=("box.test",), port=port) for name, port in PORTS]
    first = addresses._free_subnet("127.77.0.0/16", settings, random.Random(1))
    address = LoopbackAddresses(first, None).assign(["a"])["a"]
    with socket.socket() as taken:
        taken.bind((address, PORTS[1][1]))
        taken.listen()
        assert addresses._free_subnet("127.77.0.0/16", settings, random.Random(1)) != first


def test_a_small_pool_and_many_forwards_are_kept_together():
    assert addresses._free_subnet("127.77.0.0/29", [forward(AUTO)], random.Random(1)) == "127.77.0.0/29"
    many = [forward(AUTO)] * 1000
    assert addresses._free_subnet("127.77.0.0/16", many, random.Random(1)).endswith("/20")
