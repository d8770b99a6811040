"""The management surface over the wire, beside the data plane on the same port."""

from __future__ import annotations

from functools import partial

import data_contract_reader as reader
import pytest
import trio

from relaycore.config import LimitsConfig

ENDPOINT = '[{"key":"endpoint","value":"db.corp.local:1433"}]'
VERSION = "?api-version=2016-07"


def body(metadata: str) -> bytes:
    return (
        '<entry xmlns="http://www.w3.org/2005/Atom"><title type="text">sql</title><content type="application/xml">'
        '<HybridConnectionDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect">'
        f"<UserMetadata>{metadata}</UserMetadata></HybridConnectionDescription></content></entry>"
    ).encode()


def fields(relay, **more: str) -> dict[str, str]:
    return {"Host": "relay.test", "X-PROCESS-AT": "ServiceBus", "Authorization": relay.token(), **more}


async def test_the_life_of_an_entity_over_one_connection(relay) -> None:
    """mgmt 7/M01, mgmt 7/M03, mgmt 7/M05: created, read by .NET, used, deleted; its listener is told with 1001."""
    peer = await relay.connect()
    answer, _ = await peer.request("PUT", f"/sql{VERSION}", fields(relay), body(ENDPOINT))
    assert (answer.status, answer.reason) == (201, "Created")
    controls = [await relay.listen("sql"), await relay.listen("sql")]
    answer, entry = await peer.request("GET", f"/sql/{VERSION}", fields(relay))
    assert answer.headers["content-type"] == "application/atom+xml;type=entry;charset=utf-8"
    values = reader.read_entry(entry)
    assert (values["UserMetadata"], values["ListenerCount"]) == (ENDPOINT, 2)
    answer, rest = await peer.request("DELETE", f"/sql{VERSION}", fields(relay))
    assert (answer.status, rest) == (200, b"")
    for control in controls:
        assert (await control.read_frame()).close_code == 1001
    answer, feed = await peer.request("GET", f"/sql{VERSION}", fields(relay))
    assert answer.headers["content-type"] == "application/atom+xml;type=feed;charset=utf-8"
    assert reader.read_feed(feed) == []


async def test_relayed_requests_are_not_taken_for_management(relay) -> None:
    """spec 16/told-apart: ``?api-version=abc`` belongs to the application, with the header or without."""
    for target, headers in (
        ("/orders?api-version=abc", fields(relay)),
        ("/orders?api-version=2016-07", {"Host": "relay.test"}),
        ("/orders", fields(relay)),
    ):
        peer = await relay.connect()
        answer, _ = await peer.request("GET", target, headers)
        assert answer.status in (401, 502)  # relayed: a token is missing, or nobody listens


async def test_a_refusal_is_told_in_xml_and_the_connection_goes_on(relay) -> None:
    """mgmt 7/errors, mgmt 7/missing-right-401: the body is what .NET reads."""
    peer = await relay.connect()
    for _ in range(3):
        answer, error = await peer.request("GET", f"/orders{VERSION}", fields(relay, Authorization="nonsense"))
        assert answer.status == 401
        assert answer.headers["content-type"] == "application/xml; charset=utf-8"
        assert error.startswith(b"<Error><Code>401</Code><Detail>MalformedToken")
    assert (await peer.request("GET", f"/orders{VERSION}", fields(relay)))[0].status == 200


@pytest.mark.parametrize("way", ["sized", "chunked", "claimed"])
async def test_a_body_over_the_limit_is_413(start_relay, way) -> None:
    """mgmt 9/body: however its length is told; 1 MiB unless it is set otherwise."""
    assert LimitsConfig().management_body_bytes == 1_048_576
    relay = await start_relay(limits=LimitsConfig(management_body_bytes=4096))
    peer = await relay.connect()
    if way == "sized":
        answer, _ = await peer.request("PUT", f"/sql{VERSION}", fields(relay), body("x" * 5000))
    else:
        length = {"Content-Length": "5000000"} if way == "claimed" else {"Transfer-Encoding": "chunked"}
        lines = [f"PUT /sql{VERSION} HTTP/1.1", *(f"{n}: {v}" for n, v in fields(relay, **length).items()), "", ""]
        await peer.send("\r\n".join(lines).encode())
        if way == "chunked":
            for _ in range(6):
                await peer.send(b"400\r\n" + b"x" * 0x400 + b"\r\n")
        answer = await peer.read_answer()
    assert answer.status == 413
    assert relay.server.namespace.get_entity("sql") is None


async def test_a_chunked_body_is_read(relay) -> None:
    """mgmt 7/put-body: .NET clients send their entries either way."""
    peer = await relay.connect()
    data = body(ENDPOINT)
    lines = [
        f"PUT /sql{VERSION} HTTP/1.1",
        *(f"{n}: {v}" for n, v in fields(relay, **{"Transfer-Encoding": "chunked", "Expect": "100-continue"}).items()),
        "",
        "",
    ]
    await peer.send("\r\n".join(lines).encode())
    assert (await peer.read_answer()).status == 100
    for piece in (data[:10], data[10:]):
        await peer.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    await peer.send(b"0\r\n\r\n")
    assert (await peer.read_answer()).status == 201
    assert relay.server.namespace.get_entity("sql").user_metadata == ENDPOINT


async def test_head_and_body_come_together(relay) -> None:
    """mgmt 13/one-write: two writes cost a client some 40 ms; here one read takes the whole answer."""
    peer = await relay.connect()
    for _ in range(20):
        lines = [f"GET /orders{VERSION} HTTP/1.1", *(f"{n}: {v}" for n, v in fields(relay).items()), "", ""]
        await peer.send("\r\n".join(lines).encode())
        assert (await peer.stream.receive_some(65_536)).endswith(b"</entry>")


async def test_ten_writers_make_one_entity(relay) -> None:
    """mgmt 7/M03: of many at once one creates, the others are told that it exists."""
    statuses: list[int] = []

    async def put() -> None:
        peer = await relay.connect()
        answer, _ = await peer.request("PUT", f"/sql{VERSION}", fields(relay), body(ENDPOINT))
        statuses.append(answer.status)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(partial(put))
    assert sorted(statuses) == [201] + [409] * 9
