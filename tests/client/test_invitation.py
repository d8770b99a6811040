"""Reading accept messages, and deciding about them."""

from __future__ import annotations

import contextlib

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from relaycore.client.invitation import FIRST_OFFERED, Accept, Invitation, Reject
from relaycore.errors import LocalProtocolError, RemoteProtocolError
from relaycore.wire.messages import Accept as AcceptMessage
from relaycore.wire.messages import RemoteEndpoint

ID = "12345678-1234-1234-1234-1234567890ab_G0"
SENDER = RemoteEndpoint("203.0.113.7", 51234)


def invitation(address: str, *, path: str = "orders", is_tls: bool = False, headers: dict[str, str] | None = None):
    message = AcceptMessage(address, ID, headers or {}, SENDER)
    return Invitation(message, path=path, is_tls=is_tls, ssl_context=None, max_message_bytes=1000)


def test_what_a_handler_sees():
    """spec 7.1: suffix and query come from the address, headers by any spelling, the sender's endpoint."""
    incoming = invitation(
        "wss://node-7.relay.example/$hc/Dept/Orders/site/x%20y?a=1&&b=%2f&sb-hc-action=accept&sb-hc-id=1&sb-hc-rid=s",
        path="dept/orders",
        headers={"X-Mixed": "Value", "Sec-WebSocket-Protocol": "p1, p2"},
    ).incoming
    assert (incoming.path, incoming.suffix, incoming.query) == ("dept/orders", "site/x y", "a=1&&b=%2f")
    assert incoming.headers.get("x-mixed") == "Value"
    assert incoming.subprotocols == ("p1", "p2")
    assert incoming.remote_endpoint == SENDER
    assert incoming.tracking_id == ID
    assert incoming.target == "/Dept/Orders/site/x%20y?a=1&&b=%2f"


@pytest.mark.parametrize(
    ("rest", "target"),
    [("orders?x=1", "/orders?x=1"), ("orders/?x=", "/orders/?x="), ("a%2Fb//c/?sb-hc-rid=s", "/a%2Fb//c/")],
)
def test_the_target_keeps_every_slash(rest: str, target: str):
    """spec 7.1: path and query of the address are the sender's."""
    assert invitation(f"ws://h/$hc/{rest}").incoming.target == target
    assert invitation(f"ws://h/%24hc/{rest}").incoming.target == target


@pytest.mark.parametrize(
    "address",
    ["ws://h/$hc/orders?sb-hc-action=accept", "ws://h/%24hc/orders?sb-hc-action=accept", "ws://h/$hc/orders/?x=1"],
)
def test_no_suffix(address: str):
    """spec 2.1: also without a rendezvous id of our own kind, as another relay's address may be."""
    assert invitation(address).incoming.suffix == ""


def test_a_rendezvous_may_not_drop_tls():
    """spec 7.1: over TLS the control channel names wss addresses; ws in one is an attack or a misconfiguration."""
    address = "ws://h/$hc/orders?sb-hc-rid=very-secret"
    with pytest.raises(RemoteProtocolError, match="drops TLS") as caught:
        invitation(address, is_tls=True)
    assert "very-secret" not in str(caught.value)
    assert invitation("wss://h/$hc/orders?x=1", is_tls=True)
    assert invitation(address)


@pytest.mark.parametrize("address", ["", "http://h/?x", "ws://h/$hc/orders", "ws://h/$hc/a b?x", "ws://"])
def test_addresses_of_no_use(address: str):
    """spec 7.1: an absolute WebSocket URL with a query."""
    with pytest.raises(RemoteProtocolError):
        invitation(address)


@settings(deadline=None)  # a busy machine is no bug of ours
@given(address=st.text(max_size=60), tail=st.text(max_size=60))
def test_no_address_raises_anything_else(address: str, tail: str):
    for text in (address, f"wss://h/$hc/{tail}", f"wss://h/$hc/orders?{tail}"):
        with contextlib.suppress(RemoteProtocolError):
            invitation(text, is_tls=True)


OFFERING = {"Sec-WebSocket-Protocol": "p1, p2"}
ADDRESS = "ws://h/$hc/orders?x=1"


@pytest.mark.parametrize(
    ("said", "offered", "expected"),
    [
        (None, True, Accept("p1")),
        (None, False, Accept(None)),
        (Accept(), True, Accept("p1")),
        (Accept(FIRST_OFFERED), False, Accept(None)),
        (Accept("p2"), True, Accept("p2")),
        (Accept(None), True, Accept(None)),
        (Reject(403, "no"), True, Reject(403, "no")),
    ],
)
async def test_decisions(said: Accept | Reject | None, offered: bool, expected: Accept | Reject):
    """spec 7.2: the first sub-protocol by default, as .NET and Node do; the handler may choose another, or none."""
    waiting = invitation(ADDRESS, headers=OFFERING if offered else None)

    async def slow(_: object) -> Accept | Reject | None:
        await trio.lowlevel.checkpoint()
        return said

    assert await waiting.decide(lambda _: said) == expected
    assert await waiting.decide(slow) == expected


async def test_without_a_handler_everyone_is_accepted():
    assert await invitation(ADDRESS, headers=OFFERING).decide(None) == Accept("p1")


@pytest.mark.parametrize("said", [Accept("p3"), True, "yes", 200])
async def test_decisions_that_are_none(said: object):
    """spec 7.2: a sub-protocol that was not offered may not come back."""
    with pytest.raises(LocalProtocolError):
        await invitation(ADDRESS, headers=OFFERING).decide(lambda _: said)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("status", [0, 101, 200, 302, 399, 600])
def test_rejections_have_a_status_for_it(status: int):
    """spec 7.3: 400 to 599."""
    with pytest.raises(LocalProtocolError):
        Reject(status)


def test_the_default_rejection_is_that_of_the_sdks():
    """spec 7.3: 400 `Rejected by user code`."""
    assert Reject() == Reject(400, "Rejected by user code")
