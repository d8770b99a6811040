from __future__ import annotations

import random
import socket

from relaycore.edge.config.settings import ConnectSettings, Forward, ListenAt, RelaySettings
from relaycore.edge.connect.loopback import LoopbackAddresses
from relaycore.edge.run import addresses
from relaycore.edge.run.addresses import for_run
from relaycore.edge.run.modes import RunMode

RELAY = RelaySettings("", "sb://127.0.0.1:1/", is_emulator=True)
AUTO = ListenAt("tcp", "auto")
FIXED = ListenAt("tcp", "127.0.0.1", 5433)


def forward(*listen: ListenAt) -> Forward:
    return Forward("a", RELAY, "a", port=18_433, listen=listen)


def test_fixed_addresses_are_for_a_network_of_its_own():
    settings = ConnectSettings((forward(FIXED, ListenAt("unix", path="/run/a.sock")),))
    assert for_run(settings, RunMode.HOSTS).forwards[0].listen == (AUTO,)
    assert for_run(settings, RunMode.ISOLATED).forwards[0].listen == (AUTO, FIXED)


def test_a_port_that_settings_choose_is_kept():
    chosen = ListenAt("tcp", "auto", 15_433)
    assert for_run(ConnectSettings((forward(chosen),)), RunMode.HOSTS).forwards[0].listen == (chosen,)


def test_a_part_of_the_pool_is_chosen_in_which_the_addresses_are_free():
    first = addresses._free_subnet("127.77.0.0/16", [forward(AUTO)], random.Random(1))
    address = LoopbackAddresses(first, None).assign(["a"])["a"]
    with socket.socket() as taken:
        taken.bind((address, 18_433))
        taken.listen()
        assert addresses._free_subnet("127.77.0.0/16", [forward(AUTO)], random.Random(1)) != first


def test_a_small_pool_and_many_forwards_are_kept_together():
    assert addresses._free_subnet("127.77.0.0/29", [forward(AUTO)], random.Random(1)) == "127.77.0.0/29"
    many = [forward(AUTO)] * 1000
    assert addresses._free_subnet("127.77.0.0/16", many, random.Random(1)).endswith("/20")
