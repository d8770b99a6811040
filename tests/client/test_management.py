"""The client of the Atom surface, against the real surface and against answers that no relay should give."""

from __future__ import annotations

import functools
import ssl

import outcome
import pytest
import trio
import trustme

import relaycore
from relaycore.client.management import Entity, ManagementClient, Rule, new_key
from relaycore.config import TlsConfig
from relaycore.errors import (
    AuthorizationFailed,
    ConfigError,
    ConnectionLost,
    EndpointAlreadyExists,
    EndpointNotFound,
    Refused,
    RemoteProtocolError,
)
from relaycore.testing import open_relay
from relaycore.vocab import Right
from relaycore.wire.connection_string import parse_connection_string

METADATA = '[{"key":"endpoint","value":"db.corp.local:1433"}] <&"\'> \u00e9\u4e2d'


def client_for(relay, path=None, rights=None, **kwargs) -> ManagementClient:
    return ManagementClient(parse_connection_string(relay.connection_string(path, rights=rights)), **kwargs)


# Against the real surface --------------------------------------------------------------------------------------------


async def test_life_of_a_hybrid_connection():
    """mgmt 7: M01, M03 to M06."""
    async with open_relay() as relay:
        client = client_for(relay)
        assert await client.list_entities() == []
        made = await client.create_entity("Dept/site.42", user_metadata=METADATA, requires_client_authorization=False)
        assert (made.path, made.user_metadata, made.requires_client_authorization) == ("Dept/site.42", METADATA, False)
        assert made.created_at is not None
        found = await client.get_entity("dept/SITE.42")
        assert found == made
        assert found.etag
        assert found.server == f"relaycore/{relaycore.__version__}"
        assert [entity.path for entity in await client.list_entities()] == ["Dept/site.42"]
        changed = await client.update_entity(found, user_metadata=None)
        assert changed.user_metadata is None
        await client.delete_entity("Dept/site.42")
        assert await client.list_entities() == []


async def test_rules_keep_their_keys_and_metadata_stays():
    """mgmt 3.4: a rule that stays keeps both keys."""
    async with open_relay() as relay:
        client = client_for(relay)
        entity = await client.create_entity("demo", user_metadata="text", rules=[Rule("l", (Right.LISTEN,))])
        first = entity.find_rule("L")
        assert first is not None
        assert first.primary_key != first.secondary_key
        key = new_key()
        rules = [Rule("l", (Right.LISTEN, Right.SEND)), Rule("s", (Right.SEND,), key)]
        entity = await client.update_entity(entity, user_metadata=entity.user_metadata, rules=rules)
        again, second = entity.find_rule("l"), entity.find_rule("s")
        assert (again.primary_key, again.secondary_key) == (first.primary_key, first.secondary_key)
        assert again.rights == (Right.LISTEN, Right.SEND)
        assert second.primary_key == key
        assert entity.user_metadata == "text"
        assert entity.find_rule("x") is None


async def test_a_change_made_meanwhile_is_not_undone():
    """mgmt 7: If-Match with the entry's ETag, 412 on mismatch."""
    async with open_relay() as relay:
        client = client_for(relay)
        seen = await client.create_entity("demo")
        await client.update_entity(seen, user_metadata="theirs")
        with pytest.raises(Refused) as caught:
            await client.update_entity(seen, user_metadata="ours")
        assert caught.value.http_status == 412
        assert (await client.get_entity("demo")).user_metadata == "theirs"


async def test_each_no_is_its_own_error():
    async with open_relay() as relay:
        client = client_for(relay)
        await client.create_entity("demo")
        with pytest.raises(EndpointAlreadyExists, match="demo"):
            await client.create_entity("DEMO")
        with pytest.raises(EndpointNotFound, match="nope"):
            await client.get_entity("nope")
        with pytest.raises(EndpointNotFound) as caught:
            await client.delete_entity("nope")
        assert caught.value.tracking_id
        with pytest.raises(Refused, match="letters") as refused:
            await client.create_entity("a b")
        assert refused.value.http_status == 400


async def test_rights_are_checked():
    """mgmt 7: M02 to M07 need Manage; an entry shows no keys to others."""
    async with open_relay() as relay:
        await client_for(relay).create_entity("demo", rules=[Rule("l", (Right.LISTEN,))])
        listener = client_for(relay, rights=["Listen"])
        assert (await listener.get_entity("demo")).rules == ()
        for call in (listener.create_entity("x"), listener.list_entities(), listener.delete_entity("demo")):
            with pytest.raises(AuthorizationFailed):
                await call
        nobody = client_for(relay, rights=())
        with pytest.raises(ConfigError, match="neither a key nor a signature"):
            await nobody.list_entities()
        late = client_for(relay, now_unix=lambda: 1_000_000_000)
        with pytest.raises(AuthorizationFailed, match="ExpiredToken"):
            await late.list_entities()


async def test_a_list_longer_than_a_page(monkeypatch):
    """mgmt 7: $skip and $top."""
    monkeypatch.setattr("relaycore.client.management.PAGE_ENTRIES", 2)
    async with open_relay() as relay:
        for name in ("e", "d", "c", "b", "a"):
            await relay.create_entity(name)
        assert [entity.path for entity in await client_for(relay).list_entities()] == ["a", "b", "c", "d", "e"]


async def test_over_tls_the_certificate_is_checked(tmp_path):
    """failures: certificate check off by default."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    tls = TlsConfig(cert=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with open_relay(tls=tls) as relay:
        assert await client_for(relay, ssl_context=context).list_entities() == []
        with pytest.raises(ConnectionLost, match="certificate"):
            await client_for(relay).list_entities()


# Against a server that plays a script --------------------------------------------------------------------------------


async def play(answer: bytes, act, *, pause_at: int | None = None):
    """Give `answer` to the first request and hang up. Returns: the request, and what `act(client)` returned."""
    requests: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            while b"\r\n\r\n" not in data:
                data += await stream.receive_some()
            requests.append(data)
            await stream.send_all(answer[:pause_at])
            if pause_at is not None:
                await trio.lowlevel.checkpoint()
                await stream.send_all(answer[pause_at:])

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        text = f"Endpoint=sb://127.0.0.1:{port}/;SharedAccessKeyName=r;SharedAccessKey=k;UseDevelopmentEmulator=true"
        result = await outcome.acapture(act, ManagementClient(parse_connection_string(text)))
        nursery.cancel_scope.cancel()
    return requests[0], result.unwrap()


FEED = b'<feed xmlns="http://www.w3.org/2005/Atom"></feed>'


def sized(body: bytes, status: str = "200 OK", kind: str = "application/atom+xml") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def get(client: ManagementClient) -> Entity:
    return await client.get_entity("a/b")


async def test_a_request_tells_that_it_is_not_for_a_listener():
    """spec 16: X-PROCESS-AT: ServiceBus and an api-version of year and month."""
    request, _ = await play(sized(FEED), ManagementClient.list_entities)
    head = request.decode().split("\r\n")
    assert head[0] == "GET /$Resources/HybridConnections?$skip=0&$top=1000&api-version=2017-04 HTTP/1.1"
    assert "X-PROCESS-AT: ServiceBus" in head
    assert "Connection: close" in head
    assert any(line.startswith("Authorization: SharedAccessSignature sr=http%3A%2F%2F127.0.0.1%2F&") for line in head)


async def test_a_token_is_good_for_the_one_path():
    with pytest.raises(EndpointNotFound):
        await play(sized(FEED), get)
    request, _ = await play(sized(b"", "200 OK"), lambda client: client.delete_entity("a/b"))
    assert b"sr=http%3A%2F%2F127.0.0.1%2Fa%2Fb%2F&" in request
    assert request.startswith(b"DELETE /a/b?api-version=2017-04 ")


DETAIL = b"<Error><Code>500</Code><Detail>It broke. TrackingId:x_G0</Detail></Error>"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("pause_at", [None, 1, 30, 60, 70])
async def test_answers_in_pieces_and_chunks(pause_at):
    body = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in (FEED[:7], FEED[7:])) + b"0\r\n\r\n"
    for answer in (sized(FEED), CHUNKED + body):
        _, result = await play(answer, ManagementClient.list_entities, pause_at=pause_at)
        assert result == []


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (b"", ConnectionLost, "closed the connection"),
        (sized(FEED)[:-5], ConnectionLost, "closed the connection"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", RemoteProtocolError, None),
        (sized(b"<feed"), RemoteProtocolError, "not XML"),
        (sized(b"<html></html>"), RemoteProtocolError, "describes no hybrid connection"),
        (sized(b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), RemoteProtocolError, "document type"),
        (CHUNKED + b"5\r\nabc", RemoteProtocolError, "within a chunk"),
        (CHUNKED + b"zz\r\n", RemoteProtocolError, "within a chunk"),
        (CHUNKED + b"", RemoteProtocolError, "within a chunk"),
        (CHUNKED + b"-1\r\n\r\n", RemoteProtocolError, "within a chunk"),
        (sized(b"", "204 No Content"), RemoteProtocolError, "not XML"),
        (sized(b"", "503 Busy. TrackingId:x_G0"), Refused, "Busy"),
        (sized(DETAIL, "500 E", "application/xml; charset=utf-8"), Refused, "^It broke$"),
        (sized(b"junk", "500 Internal Server Error", "application/xml"), Refused, "^Internal Server Error$"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_a_documented_error(answer, error, said):
    with pytest.raises(error, match=said) as caught:
        await play(answer, get)
    if isinstance(caught.value, Refused):
        assert caught.value.http_status in (500, 503)


async def test_an_answer_has_a_longest_length(monkeypatch):
    monkeypatch.setattr("relaycore.client.management.MAX_RESPONSE_BYTES", 1_000)
    for answer in (sized(b"x" * 2_000), CHUNKED + b"x" * 2_000):
        with pytest.raises(RemoteProtocolError, match="longer than"):
            await play(answer, get)


async def test_members_may_be_missing_and_times_come_in_many_lengths():
    """mgmt 7: unknown elements are ignored; .NET writes seven fractional digits."""
    entry = b"""<entry xmlns="http://www.w3.org/2005/Atom"><title>demo</title><content type="application/xml">
      <HybridConnectionDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect">
      <CreatedAt>2026-01-31T09:15:02.1058103Z</CreatedAt><UpdatedAt>never</UpdatedAt><Colour>blue</Colour>
      <ListenerCount>many</ListenerCount></HybridConnectionDescription></content></entry>"""
    _, entity = await play(sized(entry), get)
    assert entity.path == "demo"
    assert entity.created_at.isoformat() == "2026-01-31T09:15:02.105810+00:00"
    assert entity.updated_at is None
    assert (entity.listener_count, entity.requires_client_authorization, entity.user_metadata) == (0, True, None)


async def test_nobody_there():
    text = "Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=r;SharedAccessKey=k;UseDevelopmentEmulator=true"
    with pytest.raises(ConnectionLost, match=r"cannot connect to 127\.0\.0\.1:1"):
        await ManagementClient(parse_connection_string(text)).list_entities()


async def test_silence_has_an_end():
    async def hang(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(functools.partial(trio.serve_tcp, hang, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        text = (
            f"Endpoint=sb://127.0.0.1:{port}/;SharedAccessKeyName=r;SharedAccessKey=k;UseDevelopmentEmulator=true;"
            "OperationTimeout=00:00:00.05"
        )
        with pytest.raises(ConnectionLost, match="no answer"):
            await ManagementClient(parse_connection_string(text)).list_entities()
        nursery.cancel_scope.cancel()


def test_a_rule_never_shows_its_keys():
    key = new_key()
    assert len(key) == 44
    assert key not in repr(Entity("a", True, None, 0, None, None, (Rule("r", (), key, key),)))
