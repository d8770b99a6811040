"""What it means that a relay cannot be reached: the same words wherever they are read."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from relaycore.edge.relay_way import dial_failed, way_failed
from relaycore.edge.target.failure import DialFailed, from_os_error
from relaycore.errors import ConnectionLost, NoListener
from relaycore.net.proxy import Proxy
from relaycore.net.proxy_dial import ProxyFailed, open_tcp

PROXY = Proxy("http", "proxy.test", 3128)


def lost(cause: BaseException | None, text: str = "TLS with relay.test failed") -> ConnectionLost:
    error = ConnectionLost(text)
    error.__cause__ = cause
    return error


def refused_certificate(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "so it is"
    return error


def of_many(*errors: OSError) -> OSError:
    """As Trio reports that no address answered."""
    error = OSError("all attempts to connect failed")
    error.__cause__ = ExceptionGroup("several", errors)
    return error


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "no")


@pytest.mark.parametrize(
    ("error", "text", "advice"),
    [
        (lost(REFUSED), "the relay relay.test refused the connection (ECONNREFUSED)", "start the relay"),
        (lost(of_many(REFUSED, REFUSED)), "the relay relay.test refused the connection (ECONNREFUSED)", "start the"),
        (REFUSED, "the relay relay.test refused the connection (ECONNREFUSED)", "correct its endpoint"),
        (
            lost(socket.gaierror(socket.EAI_NONAME, "no")),
            "the relay relay.test is unknown here: no such name (EAI_NONAME)",
            "add the relay's name to DNS",
        ),
        (lost(socket.gaierror(socket.EAI_AGAIN, "no")), "name server does not answer (EAI_AGAIN)", "/etc/resolv.conf"),
        (lost(OSError(errno.ENETUNREACH, "no")), "cannot be reached (ENETUNREACH)", "no route"),
        (lost(refused_certificate(62)), "the certificate of relay.test is for other names: so it is", "as endpoint"),
        (lost(refused_certificate(10)), "the certificate of relay.test is not valid now: so it is", "renew"),
        (lost(refused_certificate(20)), "the certificate of relay.test is not trusted here: so it is", "ca_file"),
        (lost(ssl.SSLCertVerificationError()), "the certificate of relay.test is not trusted here", "ca_file"),
        (lost(ssl.SSLError(1, "wrong version number")), "TLS with relay.test failed", "is it the relay's port?"),
        (lost(None, "no answer in time"), "no answer in time", "name, port or a firewall"),
        (ProxyFailed(PROXY, "it wants a user", is_authentication=True), "it wants a user", "USER:PASSWORD"),
        (ProxyFailed(PROXY, "it said 403", status=403), "it said 403", "allow connections to relay.test"),
        (ProxyFailed(PROXY, "it is gone"), "it is gone", "whether it runs"),
    ],
)
def test_each_failure_of_the_way(error: BaseException, text: str, advice: str):
    """manager 8.11: what was tried, what came back, what it means, what to do."""
    found = way_failed(error, "relay.test")
    assert found is not None
    assert text in found.text
    assert advice in found.advice
    assert "the service" not in found.text + found.advice


def test_what_is_no_failure_of_the_way():
    assert way_failed(NoListener("nobody"), "relay.test") is None


def test_a_dial_without_advice():
    assert (
        dial_failed(DialFailed(502, "relay.test was not dialled")).advice == "is its name, port or a firewall at fault?"
    )
    assert dial_failed(DialFailed(504, "the name server does not answer; wait")).text.startswith("the name server")
    assert "reset" in dial_failed(from_os_error("relay.test", OSError(errno.ECONNRESET, "x"))).text


async def test_a_real_port_where_nobody_listens():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with pytest.raises(ConnectionLost) as caught:
            await open_tcp("127.0.0.1", port)
    found = way_failed(caught.value, f"127.0.0.1:{port}")
    assert found is not None
    assert found.text == f"the relay 127.0.0.1:{port} refused the connection (ECONNREFUSED)"
