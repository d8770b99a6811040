"""Rules of the wire contract about handshakes and refusals, end to end over loopback."""

from __future__ import annotations

import re
import time
from urllib.parse import quote, quote_plus

import peers
import pytest
import trio
from peers import WirePeer

from relaycore.broker.model import RuleDefinition
from relaycore.config import TimeoutsConfig
from relaycore.vocab import Right
from relaycore.wire.handshake import accept_key

GUID = "12345678-1234-1234-1234-1234567890ab"
RFC_KEY, RFC_ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def handshake(target: str, *fields: str, host: str = "relay.test", method: str = "GET") -> bytes:
    """A request head, line by line as given."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode("latin-1")


UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {RFC_KEY}")


async def ask(relay, data: bytes) -> peers.Answer:
    peer = await relay.connect()
    await peer.send(data)
    return await peer.read_answer()


def listen_target(relay, entity: str = "orders", encode=quote) -> str:
    return f"/$hc/{entity}?sb-hc-action=listen&sb-hc-token={encode(relay.token())}"


@pytest.mark.parametrize("encode", [quote, quote_plus])
async def test_a_token_in_the_query_is_enough(relay, encode) -> None:
    """spec 2.3/browser-token, spec 2.2/token-blanks: for listener and sender, a blank as ``%20`` or as ``+``."""
    assert (await ask(relay, handshake(listen_target(relay, encode=encode), *UPGRADE))).status == 101
    control = await relay.listen("open")
    peer = await relay.connect()
    await relay.store.create_entity("default", "closed")
    closed = await relay.listen("closed")
    await peer.send(handshake(f"/$hc/closed?a=1&sb-hc-token={encode(relay.token())}&b=2", *UPGRADE))
    message = (await closed.read_json())["accept"]
    assert "?a=1&b=2&sb-hc-action=accept" in message["address"]
    assert "sb-hc-token" not in message["address"]
    await relay.come_to(message["address"])
    assert (await peer.read_answer()).status == 101
    await control.aclose()


async def test_new_entities_require_authorization(relay) -> None:
    """spec 3/defaults: a sender needs a token unless the entity was made for anonymous ones."""
    await relay.store.create_entity("default", "plain")
    await relay.listen("plain")
    answer = await ask(relay, handshake("/$hc/plain", *UPGRADE))
    assert answer.status == 401
    assert answer.reason.startswith("MissingToken")


async def test_names_of_headers_come_in_any_case_and_order(relay) -> None:
    """spec 4/header-names, spec 4/host-forms: as each HTTP library has it; ``Host`` with and without a port."""
    token = relay.token()
    for host in ("relay.test", "relay.test:443", f"RELAY.test:{relay.port}"):
        head = (
            "GET /$hc/orders?sb-hc-action=listen HTTP/1.1\r\n"
            f"SEC-WEBSOCKET-KEY: {RFC_KEY}\r\nservicebusauthorization: {token}\r\nuPGRADE: WebSocket\r\n"
            f"sec-websocket-version: 13\r\nconnection: keep-alive, upgrade\r\nhost: {host}\r\n\r\n"
        )
        assert (await ask(relay, head.encode())).status == 101


async def test_a_header_named_zero_does_no_harm(relay) -> None:
    """spec 4/header-zero, spec 4/extra-headers: Node listeners send one, Jetty others of no interest."""
    fields = (
        "0: Sec-WebSocket-Extensions: permessage-deflate",
        "Pragma: no-cache",
        "Cache-Control: no-cache",
        "Accept-Encoding: gzip",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    )
    answer = await ask(relay, handshake(listen_target(relay), *UPGRADE, *fields))
    assert answer.status == 101
    assert "sec-websocket-extensions" not in answer.headers


async def test_the_accept_key_is_made_of_the_key(relay) -> None:
    """RFC 6455 4.2.2: with the standard's own example."""
    answer = await ask(relay, handshake(listen_target(relay), *UPGRADE))
    assert answer.headers["sec-websocket-accept"] == RFC_ACCEPT == accept_key(RFC_KEY)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((), 426),
        (UPGRADE[1:], 426),
        ((UPGRADE[0], *UPGRADE[2:]), 426),
        ((*UPGRADE[:2], "Sec-WebSocket-Version: 8", UPGRADE[3]), 426),
        ((*UPGRADE[:2], UPGRADE[3]), 426),
        (UPGRADE[:3], 400),
        ((*UPGRADE[:3], "Sec-WebSocket-Key: c2hvcnQ="), 400),
        ((*UPGRADE, UPGRADE[3]), 400),
    ],
)
async def test_what_is_no_upgrade_is_refused(relay, fields, status) -> None:
    """spec 4/request, RFC 6455 4.2.1, RFC 6455 4.4: 400, or 426 with the version that is spoken."""
    answer = await ask(relay, handshake(listen_target(relay), *fields))
    assert answer.status == status
    if status == 426:
        assert answer.headers["sec-websocket-version"] == "13"
    assert not relay.server.statistics().listeners


def refusals(relay) -> dict[str, tuple[bytes, int, str, str]]:
    """By name: a request, the status, the words that must be in the reason, and the entity path in the tracker."""
    root, short = relay.token(), relay.token(ttl=-301)
    bad = peers.token("RootManageSharedAccessKey", "bm90IHRoZSBrZXk=")
    unknown = peers.token("nosuchrule", "bm90IHRoZSBrZXk=")
    foreign = relay.token(resource="http://relay.test/other")
    sends = relay.token("send", "keys", resource="http://relay.test/keys")
    listens = relay.token("listen", "keys", resource="http://relay.test/keys")

    def request(path: str, action: str, token: str | None) -> bytes:
        fields = () if token is None else (f"ServiceBusAuthorization: {token}",)
        return handshake(f"/$hc/{path}?sb-hc-action={action}", *UPGRADE, *fields)

    return {
        "unknown entity, sender": (
            request("no/such", "connect", root),
            404,
            "Endpoint does not exist: no/such",
            "no/such",
        ),
        "unknown entity, listener": (request("nil", "listen", root), 404, "Endpoint does not exist: nil", "nil"),
        "unknown entity, no token": (request("nil", "connect", None), 404, "Endpoint does not exist: nil", "nil"),
        "below an entity, listener": (
            request("orders/1", "listen", root),
            404,
            "Endpoint does not exist: orders/1",
            "",
        ),
        "bad signature": (
            request("orders", "connect", bad),
            401,
            "InvalidSignature: The token has an invalid signature: orders",
            "orders",
        ),
        "unknown rule": (
            request("orders", "connect", unknown),
            401,
            "InvalidSignature: The token has an invalid signature: orders",
            "orders",
        ),
        "no token": (request("orders", "connect", None), 401, "MissingToken", "orders"),
        "no token, listener": (request("open", "listen", None), 401, "MissingToken", "open"),
        "malformed token": (request("orders", "connect", "nonsense"), 401, "MalformedToken", "orders"),
        "JWT": (request("orders", "connect", "eyJh.eyJi.c2ln"), 401, "", "orders"),
        "JWT behind Bearer": (request("orders", "connect", "Bearer eyJh.eyJi.c2ln"), 401, "", "orders"),
        "expired": (request("orders", "connect", short), 401, "ExpiredToken", "orders"),
        "wrong audience": (
            request("orders", "connect", foreign),
            401,
            "InvalidAudience: The authorization header contains a token with a wrong audience",
            "orders",
        ),
        "send key listens": (request("keys", "listen", sends), 403, "", "keys"),
        "listen key sends": (request("keys", "connect", listens), 403, "", "keys"),
        "no listener": (
            request("orders", "connect", root),
            404,
            "There are no listeners connected for the endpoint",
            "orders",
        ),
        "unknown action": (request("orders", "dance", root), 400, "", ""),
        "malformed rendezvous": (request("orders", "accept", None), 400, "", ""),
        "unknown rendezvous": (request("orders", "accept&sb-hc-rid=x&sb-hc-id=y", None), 403, "", ""),
    }


NAMES = (
    "unknown entity, sender",
    "unknown entity, listener",
    "unknown entity, no token",
    "below an entity, listener",
    "bad signature",
    "unknown rule",
    "no token",
    "no token, listener",
    "malformed token",
    "JWT",
    "JWT behind Bearer",
    "expired",
    "wrong audience",
    "send key listens",
    "listen key sends",
    "no listener",
    "unknown action",
    "malformed rendezvous",
    "unknown rendezvous",
)


@pytest.fixture
async def keys(relay):
    rules = [RuleDefinition("send", frozenset({Right.SEND})), RuleDefinition("listen", frozenset({Right.LISTEN}))]
    await relay.store.create_entity("default", "keys", rules=rules)
    return relay


@pytest.mark.parametrize("name", NAMES)
async def test_each_refusal_has_its_status_and_words(keys, name) -> None:
    """spec 12: each row of the table, in the form with tracking id, tracker and time.

    One request each: spec 12/unknown-entity and the rows that follow it.
    """
    data, status, words, path = refusals(keys)[name]
    answer = await ask(keys, data)
    assert answer.status == status
    assert words in answer.reason
    found = re.search(r"\. TrackingId:([-0-9a-f]{36}_G\d+), SystemTracker:(sb://\S*), Timestamp:(\S+)$", answer.reason)
    assert found, answer.reason
    assert found[2].startswith("sb://relay.test/" + path)
    stamp = time.mktime(time.strptime(found[3], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert abs(stamp - time.time()) < 60


def test_every_row_is_asked() -> None:
    class Names:
        def token(self, *_: object, **__: object) -> str:
            return "x"

    assert tuple(refusals(Names())) == NAMES


@pytest.mark.parametrize(
    ("resource", "action", "target"),
    [
        ("http://relay.test/dept/sql/", "listen", "dept/sql"),
        ("http://relay.test/dept/sql/", "connect", "DEPT/Sql/suffix"),
        ("http://relay.test/", "connect", "dept/sql"),
        ("sb://relay.test:9443/dept/sql", "listen", "dept/sql"),
        ("sb://relay.test:9443", "connect", "dept/sql"),
        ("https://relay.test:9443/dept/sql/extra%20path?query", "connect", "dept/sql/extra%20path/two"),
        ("http://relay.test:443/dept/sql", "connect", "dept/sql"),
        ("http://relay.test/dept", "listen", "dept/sql"),
        ("HTTP://user@RELAY.test/DEPT/sql#part", "connect", "dept/sql"),
    ],
)
@pytest.mark.parametrize("holder", ["namespace", "entity"])
async def test_resources_of_all_clients_open_the_entity(relay, resource, action, target, holder) -> None:
    """spec 5.3/dotnet, spec 5.3/java, spec 5.3/node-and-python, spec 5.4/namespace-resource: as each one signs."""
    await relay.store.create_entity("default", "dept/sql", rules=[RuleDefinition("all", frozenset(Right))])
    token = (
        relay.token(resource=resource) if holder == "namespace" else relay.token("all", "dept/sql", resource=resource)
    )
    data = handshake(f"/$hc/{target}?sb-hc-action={action}", *UPGRADE, f"ServiceBusAuthorization: {token}")
    answer = await ask(relay, data)
    # A sender that is let in finds nobody, and that is as far as it has to come here.
    assert (answer.status, "There are no listeners" in answer.reason) == ((101, False), (404, True))[
        action == "connect"
    ]


@pytest.mark.parametrize(
    "resource",
    [
        "http://relay.test/dept/sq",
        "http://relay.test/dept/sql/deeper",
        "http://relay.test/other",
        "http:///x",
    ],
)
async def test_resources_of_others_do_not(relay, resource) -> None:
    """spec 5.4/path-prefix, spec 12/wrong-audience: segments are whole, and a longer path is another resource."""
    await relay.store.create_entity("default", "dept/sql")
    token = relay.token(resource=resource)
    answer = await ask(relay, handshake("/$hc/dept/sql", *UPGRADE, f"ServiceBusAuthorization: {token}"))
    assert answer.status == 401
    assert answer.reason.startswith("InvalidAudience: ")


async def test_a_refusal_ends_the_connection(relay) -> None:
    """spec 4/errors: no body, ``Connection: close``, and then the end."""
    peer = await relay.connect()
    await peer.send(handshake("/$hc/nil", *UPGRADE))
    answer = await peer.read_answer()
    assert answer.status == 404
    assert answer.headers == {"content-length": "0", "connection": "close"}
    assert await peer.read_eof() == b""


async def test_a_refusal_carries_the_tracking_id_of_the_client(relay) -> None:
    """spec 12/tracking-id, spec 1/tracking-id: its GUID and our number; a fresh one for a client without."""
    with_id, without = [
        await ask(relay, handshake(f"/$hc/nil?sb-hc-id={client_id}", *UPGRADE)) for client_id in (GUID, "nonsense")
    ]
    assert with_id.tracking_id == f"{GUID}_G0"
    assert re.fullmatch(r"[-0-9a-f]{36}_G0", without.tracking_id)


async def test_a_refusal_is_one_short_line(relay) -> None:
    """spec 12/one-line: Latin-1, below about 1 kB, also for a path that is long or cannot be shown."""
    for path in ("x" * 5000, "%0d%0aX-Injected:%201", "%E2%82%AC%ff"):
        answer = await ask(relay, handshake(f"/$hc/{path}", *UPGRADE))
        assert answer.status == 404
        assert len(answer.reason) <= 1000
        assert "x-injected" not in answer.headers
        assert "TrackingId:" in answer.reason


async def test_a_description_comes_form_encoded(relay) -> None:
    """spec 2.2/description-encoding: .NET and Java write a blank as ``+``."""
    control = await relay.listen()
    sender = await relay.connect()
    await sender.send(handshake("/$hc/orders", *UPGRADE, f"ServiceBusAuthorization: {relay.token()}"))
    message = (await control.read_json())["accept"]
    target = peers.split_address(message["address"])[1]
    rejection = f"{target}&sb-hc-statusCode=403&sb-hc-statusDescription=No+entry%2C+1%2B1%20please"
    assert (await ask(relay, handshake(rejection, *UPGRADE))).status == 410
    answer = await sender.read_answer()
    assert (answer.status, answer.reason) == (403, "No entry, 1+1 please")


async def test_websocket_senders_can_be_switched_off(relay) -> None:
    """spec 18/websocket-off: a published Node listener dies of its first ``accept``."""
    await relay.store.create_entity("default", "http-only", websocket=False)
    control = await relay.listen("http-only")
    answer = await ask(relay, handshake("/$hc/http-only", *UPGRADE, f"ServiceBusAuthorization: {relay.token()}"))
    assert answer.status == 403
    await control.send(peers.frame(9, b"still there"))
    assert (await control.read_frame()).payload == b"still there"


async def test_a_fault_of_ours_is_500_and_says_nothing(relay, monkeypatch) -> None:
    """spec 12/internal: with a tracking id, and without a word about the cause."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("relaycore.gateway.control_channel.check_upgrade", broken)
    answer = await ask(relay, handshake(listen_target(relay), *UPGRADE))
    assert answer.status == 500
    assert "secret" not in answer.reason
    assert answer.tracking_id
    with trio.fail_after(5):
        while not relay.named("internal.error"):
            await trio.sleep(0.005)
    (event,) = relay.named("internal.error")
    relay.events.remove(event)


# The bounds of a head ------------------------------------------------------------------------------------------------


async def test_the_fields_of_a_head_are_bounded_in_all(relay) -> None:
    """spec 15/header-size, failures/header-count: 32 kB of header fields pass, more are 431."""
    few = [f"X-{n}: {'v' * 1000}" for n in range(30)]
    many = [*few, "X-more: " + "v" * 4000]
    assert (await ask(relay, handshake(listen_target(relay), *UPGRADE, *few))).status == 101
    assert (await ask(relay, handshake(listen_target(relay), *UPGRADE, *many))).status == 431


async def test_the_lines_of_a_head_are_counted(relay) -> None:
    """failures/header-count: too many lines are 431, one endless line is 414 or 431."""
    assert (await ask(relay, handshake("/$hc/orders", *UPGRADE, *["X: y"] * 300))).status == 431
    assert (await ask(relay, handshake("/$hc/orders?" + "x" * 70_000, *UPGRADE))).status in (414, 431)
    assert (await ask(relay, handshake("/$hc/orders", *UPGRADE, "X: " + "y" * 70_000))).status == 431


async def test_a_head_has_to_come_in_time(start_relay) -> None:
    """failures/header-count: a slow loris is answered 408, and one that says nothing is let go."""
    relay = await start_relay(timeouts=TimeoutsConfig(head=0.2))
    slow = await relay.connect()
    await slow.send(b"GET /$hc/orders HTTP/1.1\r\nX: ")
    answer = await slow.read_answer()
    assert answer.status == 408
    assert await slow.read_eof() == b""
    silent = await relay.connect()
    assert await silent.read_eof() == b""


async def test_nobody_is_held_up_by_a_head_that_never_ends(relay) -> None:
    """failures/header-count: a peer's misbehaviour is its own connection's end only."""
    loris = [await relay.connect() for _ in range(20)]
    for peer in loris:
        await peer.send(b"GET /$hc/orders HTTP/1.1\r\nX: ")
    with trio.fail_after(5):
        assert (await ask(relay, handshake(listen_target(relay), *UPGRADE))).status == 101
    for peer in loris:
        assert isinstance(peer, WirePeer)
        await peer.aclose()
