"""Local addresses: opened, refused with ways out, and inherited."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
import trio

from relaycore.edge.config.settings import ListenAt
from relaycore.edge.connect import listeners
from relaycore.edge.connect.listeners import ListenFailed, inherited_sockets, open_datagrams, open_local


async def serve_once(listener, nursery) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"hello")

    nursery.start_soon(listener.serve, greet, nursery)


@pytest.mark.parametrize("host", ["127.77.9.9", "localhost", "::1"])
async def test_tcp(host):
    listener = await open_local(ListenAt("tcp", host, 0))
    async with trio.open_nursery() as nursery:
        await serve_once(listener, nursery)
        for one in listener.sockets:
            async with await trio.open_tcp_stream(*one.socket.getsockname()[:2]) as stream:
                assert await stream.receive_some() == b"hello"
        nursery.cancel_scope.cancel()
    assert all(one.socket.fileno() == -1 for one in listener.sockets)


async def test_auto_and_0_stand_for_the_forwards_own():
    listener = await open_local(ListenAt("tcp", "auto", 0), address="127.77.9.9", port=27_999)
    assert listener.shown == "127.77.9.9:27999"
    listener.close()
    listener = await open_datagrams(ListenAt("udp", "auto", 0), address="127.77.9.9", port=27_999)
    assert listener.shown == "udp:127.77.9.9:27999"
    listener.close()


async def test_a_privileged_port_has_three_ways_out_and_a_high_port(monkeypatch):
    """manager 8.6: the message names the ways out and offers a high port."""

    async def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(trio, "open_tcp_listeners", refuse)
    with pytest.raises(ListenFailed) as caught:
        await open_local(ListenAt("tcp", "auto", 0), address="127.77.9.9", port=443)
    text = str(caught.value)
    assert caught.value.is_port
    assert text.startswith("cannot listen on 127.77.9.9:443: Permission denied")
    for way in ("--mode isolated", "ip_unprivileged_port_start=443", "setcap", '["auto:10443"]'):
        assert way in text


async def test_an_address_of_another_machine():
    with pytest.raises(ListenFailed, match="choose an address of this machine"):
        await open_local(ListenAt("tcp", "192.0.2.1", 27_999))


async def test_a_taken_udp_port():
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ListenFailed, match="another program listens there"):
            await open_datagrams(ListenAt("udp", *taken.getsockname()))


async def test_a_unix_socket_that_died_is_replaced_and_a_live_one_is_not(tmp_path):
    path = str(tmp_path / "s")
    at = ListenAt("unix", path=path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    listener = await open_local(at)
    with pytest.raises(ListenFailed, match="another program listens there"):
        await open_local(at)
    listener.close()
    listener.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_unix_socket_is_never_open_to_more_than_it_should_be(tmp_path, monkeypatch):
    modes = []
    chmod = os.chmod

    def watch(path, mode) -> None:
        modes.append(os.stat(path).st_mode & 0o777)
        chmod(path, mode)

    monkeypatch.setattr(listeners.os, "chmod", watch)
    umask = os.umask(0)
    try:
        listener = await open_local(ListenAt("unix", path=str(tmp_path / "s"), mode=0o666))
        assert os.umask(0) == 0
    finally:
        os.umask(umask)
    assert modes == [0o600]
    assert os.stat(tmp_path / "s").st_mode & 0o777 == 0o666
    listener.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("precious"), "a file is there that is no socket"),
        (lambda path: path.mkdir(), "a file is there that is no socket"),
        (lambda path: None, "make the directory"),
    ],
)
async def test_paths_that_are_no_place_for_a_socket(tmp_path, make, words):
    path = tmp_path / ("s" if "file" in words else "missing/s")
    make(path)
    with pytest.raises(ListenFailed, match=words):
        await open_local(ListenAt("unix", path=str(path)))
    with pytest.raises(ListenFailed, match="too long"):
        await open_local(ListenAt("unix", path=str(tmp_path / ("x" * 200))))


async def test_a_unix_socket_is_given_to_whom_the_settings_name(tmp_path, monkeypatch):
    """manager 8.6: mode/owner keys; the file never listens as somebody else's."""
    order: list[object] = []

    def chown(path: Path, uid: int, gid: int, *, follow_symlinks: bool) -> None:
        order.append((Path(path).name, uid, gid, follow_symlinks))

    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(os, "chmod", lambda path, mode: order.append(mode))
    path = tmp_path / "s"
    listener = await open_local(ListenAt("unix", path=str(path), mode=0o660, owner="root", group="4711"))
    listener.close()
    assert order == [("s", 0, 4711, False), 0o660]

    with pytest.raises(ListenFailed, match="there is no user 'nobody-here'"):
        await open_local(ListenAt("unix", path=str(path), owner="nobody-here"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ListenFailed, match=r"cannot be given to group root: user \d+ may not; only root"):
        await open_local(ListenAt("unix", path=str(path), group="root"))
    assert not path.exists()


async def test_no_descriptor_for_a_unix_socket(tmp_path, monkeypatch):
    """failures: the address cannot be opened now, and everything else goes on."""
    path = tmp_path / "s"

    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    monkeypatch.setattr(socket, "socket", full)
    for _ in range(2):
        with pytest.raises(ListenFailed, match="Too many open files"):
            await open_local(ListenAt("unix", path=str(path)))
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED, errno.EPERM, errno.ENETDOWN, errno.EINVAL])
async def test_an_accept_that_fails_ends_nothing(monkeypatch, autojump_clock, number):
    """failures: accept fails at once and again while the table of descriptors is full, and for single connections."""
    listener = await open_local(ListenAt("tcp", "127.0.0.1", 0))
    one = listener.sockets[0]
    accept, failures = one.accept, 2

    async def fail_first():
        nonlocal failures
        if failures:
            failures -= 1
            raise OSError(number, os.strerror(number))
        return await accept()

    monkeypatch.setattr(one, "accept", fail_first)
    async with trio.open_nursery() as nursery:
        await serve_once(listener, nursery)
        async with await trio.open_tcp_stream(*one.socket.getsockname()) as stream:
            assert await stream.receive_some() == b"hello"
        nursery.cancel_scope.cancel()
    assert failures == 0


# A service manager's sockets -----------------------------------------------------------------------------------------


@pytest.fixture
def inherited(monkeypatch):
    """Puts sockets where a service manager would; returns the environment for them."""

    def put(names: str, *sockets: socket.socket) -> dict[str, str]:
        first = 200
        monkeypatch.setattr(listeners, "_FIRST_FD", first)
        for place, one in enumerate(sockets):
            os.dup2(one.fileno(), first + place)
            one.close()
        return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names}

    return put


async def test_sockets_are_taken_by_the_forwards_name_or_by_address(inherited, tmp_path):
    """manager 8.6: systemd socket activation."""
    at = ListenAt("tcp", "127.0.0.1", 0)
    named, unnamed = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "s"))
    unix.listen()
    stray = socket.create_server(("127.0.0.1", 0))
    addresses = [one.getsockname() for one in (named, unnamed, stray)]
    found = inherited_sockets(inherited("orders:x.socket::stray", named, unnamed, unix, stray))
    [listener] = found.take("orders")
    assert listener.shown == "127.0.0.1:{1}".format(*addresses[0])
    listener.close()
    assert list(found.take("orders")) == []
    assert found.take_address(at) is None
    listener = found.take_address(at, port=addresses[1][1])
    assert listener is not None
    assert listener.at is at
    async with trio.open_nursery() as nursery:
        await serve_once(listener, nursery)
        async with await trio.open_tcp_stream(*addresses[1]) as stream:
            assert await stream.receive_some() == b"hello"
        nursery.cancel_scope.cancel()
    listener = found.take_address(ListenAt("unix", path=str(tmp_path / "s")))
    assert listener is not None
    listener.close()
    assert (tmp_path / "s").exists()
    found.close()
    with pytest.raises(OSError, match=r"."):
        await trio.open_tcp_stream(*addresses[2])


async def test_what_is_for_others_or_does_not_listen_is_left_alone(inherited):
    with socket.create_server(("127.0.0.1", 0)) as one:
        environ = inherited("orders", one)
        assert inherited_sockets({**environ, "LISTEN_PID": "1"}).sockets == []
        assert inherited_sockets({**environ, "LISTEN_FDS": "x"}).sockets == []
        assert inherited_sockets({}).sockets == []
        found = inherited_sockets(environ)
        assert len(found.sockets) == 1
        found.close()
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    environ = inherited("orders", datagrams)
    assert inherited_sockets(environ).sockets == []
    os.close(200)
    assert inherited_sockets(environ).sockets == []
