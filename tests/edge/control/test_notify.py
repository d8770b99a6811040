"""Words to the service manager, received on a real socket."""

from __future__ import annotations

import socket

import pytest
import trio

from relaycore.edge.control.notify import Notifier


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield receiver


def environ(manager, **others):
    return {"NOTIFY_SOCKET": manager.getsockname(), **others}


def test_each_state_is_one_datagram(manager):
    notifier = Notifier(environ(manager))
    notifier.ready("2 connections\nREADY=0")
    assert manager.recv(4096) == b"READY=1\nSTATUS=2 connections READY=0"
    notifier.reloading()
    reloading = manager.recv(4096).decode()
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert reloading.rpartition("=")[2].isdecimal()
    notifier.status("a=b")
    assert manager.recv(4096) == b"STATUS=a=b"
    notifier.stopping("draining")
    assert manager.recv(4096) == b"STOPPING=1\nSTATUS=draining"


def test_an_abstract_address_is_understood():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("")  # the kernel chooses an abstract name
        address = receiver.getsockname()
        receiver.setblocking(False)
        Notifier({"NOTIFY_SOCKET": "@" + address[1:].decode()}).ready("")
        assert receiver.recv(4096) == b"READY=1"


def test_nobody_listens_and_nothing_is_wrong(tmp_path):
    Notifier({}).ready("")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("")


async def test_signs_of_life_come_twice_as_often_as_asked_for(manager, autojump_clock):
    notifier = Notifier(environ(manager, WATCHDOG_USEC="30000000"))
    assert notifier.watchdog_s == 30
    with trio.move_on_after(46):
        await notifier.watch()
    for _ in range(4):
        assert manager.recv(4096) == b"WATCHDOG=1"
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


@pytest.mark.parametrize(
    "others", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}]
)
async def test_where_nobody_watches_there_are_none(manager, others):
    notifier = Notifier(environ(manager, **others))
    assert notifier.watchdog_s is None
    await notifier.watch()
