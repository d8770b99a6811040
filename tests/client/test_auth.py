"""Signed requests: which requests get a token, in which header, and where no token ever goes."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
import requests
import trio

import relaycore
from relaycore.errors import ConfigError
from relaycore.testing import open_relay
from relaycore.wire.sas import parse_token, signature_matches

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
STRING = f"Endpoint=sb://relay.example/;SharedAccessKeyName=send;SharedAccessKey={KEY};EntityPath=web/a"
BOTH = ("Authorization", "ServiceBusAuthorization")


def jwt(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'RS256'})}.{part(claims)}.c2lnbmF0dXJl"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


# By hand -------------------------------------------------------------------------------------------------------------


def test_a_token_is_for_the_hybrid_connection_and_lasts_an_hour():
    """spec 5.3, 14: .NET's form of the resource, 60 minutes."""
    token = parse_token(relaycore.auth(STRING, clock=Clock()).token())
    assert token.resource == "http%3A%2F%2Frelay.example%2Fweb%2Fa%2F"
    assert (token.rule_name, token.expiry_unix) == ("send", 1_003_600)
    assert signature_matches(token, [KEY])


def test_a_token_is_kept_and_renewed_well_before_its_end():
    """spec 5.6: a token that runs out on its way is no token."""
    clock = Clock()
    auth = relaycore.auth(STRING, clock=clock)
    first = auth.token()
    clock.now += 1_799
    assert auth.token() == first
    clock.now += 2
    second = auth.token()
    assert parse_token(second).expiry_unix == parse_token(first).expiry_unix + 1_801


def test_a_token_whose_end_cannot_be_read_is_asked_for_each_time():
    given = iter(["one", "two"])
    auth = relaycore.auth(STRING, token=lambda _: next(given))
    assert [auth.token(), auth.token()] == ["one", "two"]


def test_a_provider_that_returns_a_dead_token_is_asked_again():
    clock = Clock()
    given = iter([jwt(exp=clock.now - 1), jwt(exp=clock.now + 100)])
    auth = relaycore.auth(STRING, token=lambda _: next(given), clock=clock)
    auth.token()
    live = auth.token()
    clock.now += 49
    assert auth.token() == live


def test_a_static_token_is_sent_as_it_is():
    """spec 5.6: a static token string is never renewed."""
    clock = Clock()
    auth = relaycore.auth("Endpoint=sb://relay.example/", path="web", token=jwt(exp=5), clock=clock)
    assert auth.token() == auth.token() == jwt(exp=5)


def test_the_url():
    """spec 2.1: https, the path escaped, names meant for the relay dropped from the query."""
    auth = relaycore.auth("Endpoint=sb://relay.example:9443/;SharedAccessKeyName=s;SharedAccessKey=k", path="/a b/c/")
    assert auth.url() == "https://relay.example:9443/a%20b/c"
    assert auth.url("/") == "https://relay.example:9443/a%20b/c/"
    assert auth.url("x y/ü/", "q=%20&sb-hc-token=t") == "https://relay.example:9443/a%20b/c/x%20y/%C3%BC/?q=%20"
    assert relaycore.auth(STRING, tls=False).url() == "http://relay.example/web/a"
    emulator = f"Endpoint=sb://[::1]:80/;SharedAccessKeyName=s;SharedAccessKey={KEY};UseDevelopmentEmulator=true"
    assert relaycore.auth(emulator, path="x").url("y") == "http://[::1]:80/x/y"


def test_the_headers():
    auth = relaycore.auth(STRING)
    assert auth.headers() == {"Authorization": auth.token()}
    other = relaycore.auth(STRING, header="servicebusauthorization")
    assert other.headers() == {"ServiceBusAuthorization": other.token()}


@pytest.mark.parametrize(
    ("string", "options", "said"),
    [
        ("Endpoint=sb://relay.example/;EntityPath=web", {}, "nothing to sign with"),
        (f"Endpoint=sb://h/;SharedAccessKeyName=s;SharedAccessKey={KEY}", {}, "EntityPath"),
        (STRING, {"header": "X-Token"}, "Authorization or ServiceBusAuthorization"),
    ],
)
def test_what_does_not_fit_together(string: str, options: dict[str, str], said: str):
    with pytest.raises(ConfigError, match=said):
        relaycore.auth(string, **options)


def test_an_async_provider_cannot_be_awaited_here():
    async def provide(audience: str) -> str:
        raise AssertionError

    with pytest.raises(ConfigError, match="plain function"):
        relaycore.auth(STRING, token=provide).token()


def test_no_secret_is_shown():
    auth = relaycore.auth(STRING, header="ServiceBusAuthorization")
    prepared = requests.Request("GET", auth.url(), auth=auth).prepare()
    shown = repr(auth) + str(auth) + repr(prepared) + repr(prepared.hooks)
    request = auth(httpx2.Request("GET", auth.url()))
    shown += repr(request) + repr(request.headers)
    signature = auth.token().partition("sig=")[2].partition("&")[0]
    assert signature not in shown
    assert KEY not in shown
    assert "web/a" in repr(auth)


def test_threads_that_come_together_get_one_token():
    """Only one of them asks the provider; the others wait for what it finds."""
    crowd = threading.Barrier(8)
    asked = []

    def provide(audience: str) -> str:
        asked.append(audience)
        return jwt(exp=1_000_100, n=len(asked))

    auth = relaycore.auth(STRING, token=provide, clock=Clock())
    found = []

    def work() -> None:
        crowd.wait()
        for _ in range(50):
            found.append(auth(requests.Request("GET", auth.url()).prepare()).headers["Authorization"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 400
    assert set(found) == {jwt(exp=1_000_100, n=1)}
    assert len(asked) == 1


def test_a_provider_that_fails_fails_the_request_and_is_asked_again():
    answers: list[str | Exception] = [OSError("vault is shut"), jwt(exp=2_000_000)]

    def provide(_: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    auth = relaycore.auth(STRING, token=provide, clock=Clock())
    with pytest.raises(OSError, match="vault"):
        auth.token()
    assert auth.token() == jwt(exp=2_000_000)


# Which requests get one ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://relay.example/web/a",
        "https://relay.example:443/web/a/",
        "https://RELAY.example/web/a/deeper?x=1",
        "https://relay.example/WEB/%61?x=http://other.example/",
    ],
)
def test_requests_to_the_relay_are_signed(url: str):
    auth = relaycore.auth(STRING)
    assert auth(requests.Request("GET", url).prepare()).headers["Authorization"] == auth.token()
    assert auth(httpx2.Request("GET", url)).headers["Authorization"] == auth.token()


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/web/a",
        "http://relay.example/web/a",
        "https://relay.example:8443/web/a",
        "https://relay.example/",
        "https://relay.example/web",
        "https://relay.example/web/ab",
        "https://relay.example/other/web/a",
        "https://relay.example.other.example/web/a",
        "https://relay.example@other.example/web/a",
        "https://user:word@relay.example/web/a",
    ],
)
def test_others_are_left_alone(url: str):
    """A token for one hybrid connection is nothing for the listener of another one, on the same relay neither."""
    auth = relaycore.auth(STRING)
    for request in (requests.Request("GET", url).prepare(), httpx2.Request("GET", url)):
        before = dict(request.headers)
        assert auth(request) is request
        assert dict(request.headers) == before


@pytest.mark.parametrize(
    "url",
    [
        "https://relay.example/web/a/../b",
        "https://relay.example/web/a/%2e%2E/b",
        "https://relay.example\\@other.example/web/a",
        "https://relay.example\\.other.example/web/a",
        "https://other.example\\@relay.example/web/a",
        "https://relay.example/web/a\n",
        "//relay.example/web/a",
        "ftp://relay.example/web/a",
        "",
    ],
)
def test_a_url_that_could_be_read_in_two_ways_is_not_signed(url: str):
    class Raw:
        def __init__(self) -> None:
            self.url, self.headers = url, {}

    request = relaycore.auth(STRING)(Raw())
    assert request.headers == {}


def test_an_application_s_own_authorization_is_kept():
    """spec 5.1, 10: Authorization is passed on when ServiceBusAuthorization holds the token."""
    auth = relaycore.auth(STRING)
    request = auth(requests.Request("GET", auth.url(), headers={"authorization": "Bearer app"}).prepare())
    assert request.headers["Authorization"] == "Bearer app"
    assert request.headers["ServiceBusAuthorization"] == auth.token()
    other = auth(httpx2.Request("GET", auth.url(), headers={"authorization": "Bearer app"}))
    assert other.headers["Authorization"] == "Bearer app"
    assert dict(other.headers.raw)[b"ServiceBusAuthorization"] == auth.token().encode()


@pytest.mark.parametrize("token", [None, jwt(exp=2_000_000)])
def test_a_request_that_is_sent_again_gets_the_token_where_it_had_it(token: str | None):
    clock = Clock()
    auth = relaycore.auth(STRING, token=(lambda _: token) if token else None, clock=clock)
    for request in (requests.Request("GET", auth.url()).prepare(), httpx2.Request("GET", auth.url())):
        auth(request)
        clock.now += 3_000
        auth(request)
        assert request.headers["Authorization"] == auth.token()
        assert "ServiceBusAuthorization" not in request.headers


def test_header_decides():
    auth = relaycore.auth(STRING, header="Authorization")
    own = {"Authorization": "Bearer app"}
    assert auth(requests.Request("GET", auth.url(), headers=own).prepare()).headers["Authorization"] == auth.token()
    auth = relaycore.auth(STRING, header="ServiceBusAuthorization")
    request = auth(auth(httpx2.Request("GET", auth.url())))
    assert [name for name, _ in request.headers.raw].count(b"ServiceBusAuthorization") == 1
    assert "Authorization" not in request.headers


# Redirects, with real clients and servers ----------------------------------------------------------------------------


class Site:
    """Answers 307 with `location` while there is one left, then 200; records the header fields of each request."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.locations: list[str] = []
        self.seen: list[dict[str, str]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.seen.append({name: value for name, value in self.headers.items() if name in BOTH})
                location = site.locations.pop(0) if site.locations else None
                self.send_response(200 if location is None else 307)
                if location is not None:
                    self.send_header("Location", location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]

    @property
    def string(self) -> str:
        return f"Endpoint=sb://127.0.0.1:{self.port}/;SharedAccessKeyName=s;SharedAccessKey={KEY};EntityPath=web"


@pytest.fixture
def sites() -> Iterator[tuple[Site, Site]]:
    with contextlib.ExitStack() as stack:
        both = (Site("relay"), Site("other"))
        for site in both:
            thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(site.server.server_close)
            stack.callback(site.server.shutdown)
        yield both


def get_with_requests(url: str, auth: relaycore.SenderAuth, headers: dict[str, str]) -> int:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, auth=auth, headers=headers, timeout=30).status_code


def get_with_httpx(url: str, auth: relaycore.SenderAuth, headers: dict[str, str]) -> int:
    with httpx2.Client(auth=auth, follow_redirects=True, trust_env=False, timeout=30) as client:
        return client.get(url, headers=headers).status_code


Get = Callable[[str, relaycore.SenderAuth, dict[str, str]], int]

CLIENTS = pytest.mark.parametrize("get", [get_with_requests, get_with_httpx])
HEADERS = pytest.mark.parametrize("header", [None, *BOTH])
OWN = pytest.mark.parametrize("own", [{}, {"Authorization": "Bearer app"}])


@CLIENTS
@HEADERS
@OWN
def test_a_redirect_to_another_host_carries_no_token(
    sites: tuple[Site, Site], get: Get, header: str | None, own: dict[str, str]
):
    relay, other = sites
    auth = relaycore.auth(relay.string, header=header, tls=False)
    for location in (f"http://127.0.0.1:{other.port}/web", f"//127.0.0.1:{other.port}/web"):
        relay.locations = [location]
        assert get(auth.url(), auth, own) == 200
        name = header or ("ServiceBusAuthorization" if own else "Authorization")
        assert relay.seen.pop()[name] == auth.token()
        assert auth.token() not in other.seen.pop().values()


@CLIENTS
@HEADERS
def test_a_redirect_that_comes_back_leaks_nothing_on_its_way(sites: tuple[Site, Site], get: Get, header: str | None):
    relay, other = sites
    auth = relaycore.auth(relay.string, header=header, tls=False)
    relay.locations = [auth.url("there"), f"http://127.0.0.1:{other.port}/x"]
    other.locations = [auth.url("back")]
    assert get(auth.url(), auth, {}) == 200
    assert len(relay.seen) == 3
    assert other.seen == [{}]


@pytest.mark.parametrize(
    ("get", "header", "stays"),
    [
        (get_with_requests, "Authorization", True),
        (get_with_requests, "ServiceBusAuthorization", True),
        (get_with_httpx, "Authorization", True),
        (get_with_httpx, "ServiceBusAuthorization", False),  # the module tells why
    ],
)
def test_a_redirect_inside_the_hybrid_connection(sites: tuple[Site, Site], get: Get, header: str, stays: bool):
    relay, _ = sites
    auth = relaycore.auth(relay.string, header=header, tls=False)
    relay.locations = ["/web/x", "y"]
    assert get(auth.url(), auth, {}) == 200
    assert [auth.token() in seen.values() for seen in relay.seen] == [True, stays, stays]


def test_requests_keeps_the_token_from_another_hybrid_connection(sites: tuple[Site, Site]):
    relay, _ = sites
    auth = relaycore.auth(relay.string, tls=False)
    relay.locations = ["/other/x"]
    assert get_with_requests(auth.url(), auth, {}) == 200
    assert [auth.token() in seen.values() for seen in relay.seen] == [True, False]


async def test_an_async_client_under_trio(sites: tuple[Site, Site]):
    relay, other = sites
    auth = relaycore.auth(relay.string, tls=False)
    async with httpx2.AsyncClient(auth=auth, follow_redirects=True, trust_env=False) as client:
        assert (await client.get(auth.url())).status_code == 200
        for own in ({}, {"Authorization": "Bearer app"}):
            relay.locations = [f"http://127.0.0.1:{other.port}/"]
            assert (await client.get(auth.url(), headers=own)).status_code == 200
    assert [auth.token() in seen.values() for seen in relay.seen] == [True, True, True]
    assert other.seen == [{}, {}]


# Through a relay -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, *BOTH])
@pytest.mark.parametrize("own", [{}, {"Authorization": "Bearer app"}])
@pytest.mark.parametrize("needs_token", [True, False])
async def test_what_the_listener_sees(header: str | None, own: dict[str, str], needs_token: bool):
    """spec 5.1, 5.7, 10: Authorization goes with the credential only; the other field always."""
    seen = []

    async def answer(request: relaycore.HttpRequest) -> str:
        seen.append(request.headers)
        return request.suffix

    async with open_relay() as relay:
        await relay.create_entity("web", requires_client_authorization=needs_token)
        auth = relaycore.auth(relay.connection_string("web", rights=["Send"]), header=header)
        async with (
            trio.open_nursery() as nursery,
            httpx2.AsyncClient(auth=auth, trust_env=False) as client,
        ):
            await nursery.start(relaycore.serve_http, relay.connection_string("web"), answer)
            found = await client.get(auth.url("a b"), headers=own)
            assert (found.status_code, found.text) == (200, "a b")
            nursery.cancel_scope.cancel()
    (headers,) = seen
    assert "ServiceBusAuthorization" not in headers
    if header == "ServiceBusAuthorization" or (own and header is None):
        assert headers.get("Authorization") == own.get("Authorization")
    else:
        assert headers.get("Authorization") == (None if needs_token else auth.token())


def test_the_standard_library_s_client(sites: tuple[Site, Site]):
    import urllib.request

    relay, _ = sites
    auth = relaycore.auth(relay.string, tls=False)
    with urllib.request.urlopen(urllib.request.Request(auth.url("x"), headers=auth.headers()), timeout=30) as answer:
        assert answer.status == 200
    assert relay.seen == [auth.headers()]
