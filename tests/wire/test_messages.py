"""Control messages: written as narrowly as the strictest SDK reads, read as widely as the loosest writes."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from relaycore.wire import messages
from relaycore.wire.messages import Accept, RemoteEndpoint, RenewToken, Request, Response

GUID = "12345678-1234-1234-1234-1234567890ab"
ENDPOINT = RemoteEndpoint("203.0.113.7", 51234)
ADDRESS = f"wss://h/$hc/hyco?sb-hc-action=accept&sb-hc-id={GUID}_G0&sb-hc-rid=s3cret"


def accept(**changes):
    values = {
        "address": ADDRESS,
        "id": f"{GUID}_G0",
        "connectHeaders": {"Host": "h", "Sec-WebSocket-Key": "k", "Sec-WebSocket-Version": "13"},
        "remoteEndpoint": ENDPOINT,
    }
    return Accept(**{**values, **changes})


def test_accept_form():
    """spec 7.1: one top-level member, and in it address, id, connectHeaders and remoteEndpoint, no more."""
    assert json.loads(messages.encode_accept(accept())) == {
        "accept": {
            "address": ADDRESS,
            "id": f"{GUID}_G0",
            "connectHeaders": {"Host": "h", "Sec-WebSocket-Key": "k", "Sec-WebSocket-Version": "13"},
            "remoteEndpoint": {"address": "203.0.113.7", "port": 51234},
        }
    }


def test_renew_token_form():
    """spec 6.4: the renewToken message."""
    assert messages.encode_renew_token("SharedAccessSignature sr=x") == (
        '{"renewToken":{"token":"SharedAccessSignature sr=x"}}'
    )


def test_request_forms():
    """spec 9.3: a full request says whether a body follows; the address-only form has neither method nor body."""
    full = Request(ADDRESS, "i", "/hyco/abc?x=1", "POST", ENDPOINT, {"Host": "h"}, False)
    assert json.loads(messages.encode_request(full)) == {
        "request": {
            "address": ADDRESS,
            "id": "i",
            "requestTarget": "/hyco/abc?x=1",
            "method": "POST",
            "remoteEndpoint": {"address": "203.0.113.7", "port": 51234},
            "requestHeaders": {"Host": "h"},
            "body": False,
        }
    }
    address_only = Request(ADDRESS, "i")
    assert json.loads(messages.encode_request(address_only)) == {"request": {"address": ADDRESS, "id": "i"}}
    assert address_only.is_address_only
    assert not full.is_address_only


def test_response_form():
    """spec 9.7: all five members, the status as a number."""
    encoded = messages.encode_response(Response("i", 200, "OK", {"Content-Type": "text/plain"}, True))
    assert json.loads(encoded) == {
        "response": {
            "requestId": "i",
            "statusCode": 200,
            "statusDescription": "OK",
            "responseHeaders": {"Content-Type": "text/plain"},
            "body": True,
        }
    }


def test_text_is_written_as_utf8_not_as_escapes():
    """spec 6.2: 65 536 bytes have to hold a large head, so nothing is blown up by escapes that JSON does not need."""
    assert '"X":"\xe4/<>&\'"' in messages.encode_accept(accept(connectHeaders={"X": "\xe4/<>&'"}))


def test_nothing_secret_in_the_repr():
    """spec 5.4: the rendezvous address is itself the secret; tokens and headers stay out of logs too."""
    shown = repr(accept()) + repr(Request(ADDRESS, "i")) + repr(RenewToken("t0ken"))
    assert "s3cret" not in shown
    assert "t0ken" not in shown
    assert GUID in shown


# From a listener ----------------------------------------------------------------------------------------------------


def response_text(**members):
    return json.dumps({"response": {"requestId": "i", "statusCode": 200, **members}})


def test_response_in_full():
    """spec 9.7: the answer of the SDKs."""
    text = response_text(statusDescription="Fine", responseHeaders={"Content-Type": "text/plain"}, body=True)
    assert messages.parse_from_listener(text) == Response("i", 200, "Fine", {"Content-Type": "text/plain"}, True)


def test_members_in_any_order_and_unknown_ones():
    """spec 6.2: any member order, unknown members, missing optional ones."""
    text = '{"x":[1,{"y":null}],"response":{"body":false,"z":{},"statusCode":204,"requestId":"i"}}'
    assert messages.parse_from_listener(text) == Response("i", 204, "No Content", {}, False)


@pytest.mark.parametrize(
    ("given_status", "status"),
    [
        (200, 200), ("200", 200), (599, 599), (999, 999), ("418", 418), (404.0, 404),
        (100, 502), (101, 502), (199, 502), (1000, 502), (0, 502), (-200, 502), ("", 502), ("abc", 502), (None, 502),
        ("1" * 5_000, 502),
    ],
)  # fmt: skip
def test_status_codes(given_status, status):
    """spec 9.7: number or numeric string; 200 to 999 as it is, 1xx or unusable is 502."""
    assert messages.parse_from_listener(response_text(statusCode=given_status)).statusCode == status


@pytest.mark.parametrize("status", [204, 205, 304, 306, 407, 418, 426, 450, 502, 504])
def test_every_status_of_the_tests_passes(status):
    """spec 9.7: all codes that the SDKs' tests use must pass, also 502 and 504."""
    assert messages.parse_from_listener(response_text(statusCode=status)).statusCode == status


def test_missing_status():
    """spec 9.7: without a status the answer is unusable, not lost."""
    assert messages.parse_from_listener('{"response":{"requestId":"i"}}') == Response("i", 502, "Bad Gateway")


@pytest.mark.parametrize(
    ("members", "description"),
    [
        ({}, "OK"),
        ({"statusDescription": None}, "OK"),
        ({"statusDescription": ""}, ""),
        ({"statusDescription": " \"'(){}[]<>=/,:;@\\"}, " \"'(){}[]<>=/,:;@\\"),
        ({"statusCode": 799}, ""),
    ],
)
def test_descriptions(members, description):
    """spec 9.7: the description verbatim; missing: the standard phrase; empty: empty."""
    assert messages.parse_from_listener(response_text(**members)).statusDescription == description


def test_header_values_of_other_types():
    """spec 6.2: string, number, boolean or array of strings."""
    headers = {"a": "x", "b": 1, "c": True, "d": False, "e": 1.5, "f": ["x", "y"], "g": None, "h": [1, None], "i": []}
    assert messages.parse_from_listener(response_text(responseHeaders=headers)).responseHeaders == {
        "a": "x", "b": "1", "c": "true", "d": "false", "e": "1.5", "f": ["x", "y"], "g": "", "h": ["1", ""], "i": [],
    }  # fmt: skip
    assert messages.parse_from_listener(response_text(responseHeaders=None, body=None)) == Response("i", 200, "OK")


def test_renew_token():
    """spec 6.4: the token comes out as it stands."""
    assert messages.parse_from_listener('{"renewToken":{"token":"SharedAccessSignature sr=x"}}') == RenewToken(
        "SharedAccessSignature sr=x"
    )


NO_MESSAGES = [
    "", "{", "[]", "null", "1", '"x"', "{}", "\ufeff{}", '{"unknown":{}}', '{"ping":1}', "not json",
    '{"renewToken":null}', '{"renewToken":{}}', '{"renewToken":{"token":1}}', '{"renewToken":"x"}',
    '{"renewtoken":{"token":"x"}}', '{"RENEWTOKEN":{"token":"x"}}',
    '{"response":{}}', '{"response":{"statusCode":200}}', '{"response":{"requestId":1,"statusCode":200}}',
    '{"response":{"requestId":"i","statusCode":[]}}', '{"response":{"requestId":"i","body":"yes"}}',
    '{"response":{"requestId":"i","responseHeaders":{"a":{}}}}', '{"response":{"requestId":"i","responseHeaders":[]}}',
    '{"response":{"requestId":"i"},"renewToken":{"token":"x"}}',
    '{"renewToken":{"token":"\\ud800"}}', '{"renewToken":{"token":"\ud800"}}',
    '{"accept":{"address":"a","id":"i","connectHeaders":{}}}',
    '{"renewToken":{"token":"x"}} x', '{"renewToken":{"token":"a\nb"}}',
    "[" * 60_000, '{"x":' * 10_000, '{"response":{"responseHeaders":' + "[" * 60_000,
]  # fmt: skip


@pytest.mark.parametrize("text", NO_MESSAGES)
def test_what_is_no_message_of_a_listener(text):
    """spec 6.2: malformed JSON or an unknown member is ignored and counted, also when nested without end."""
    assert messages.parse_from_listener(text) is None


# From a relay -------------------------------------------------------------------------------------------------------


def test_accept_without_remote_endpoint():
    """spec 7.1: the guide has no remoteEndpoint in its accept (19); our library takes an accept without one."""
    text = '{"accept":{"address":"wss://h/","id":"i","connectHeaders":{"A":"b"},"new":1}}'
    assert messages.parse_from_relay(text) == Accept("wss://h/", "i", {"A": "b"}, None)


def test_requests_of_a_relay():
    """spec 9.3: both forms of a request."""
    assert messages.parse_from_relay('{"request":{"address":"a","id":"i"}}').is_address_only
    text = '{"request":{"address":"a","id":"i","method":"GET","requestTarget":"/","requestHeaders":{},"body":true}}'
    assert messages.parse_from_relay(text) == Request("a", "i", "/", "GET", None, {}, True)


@pytest.mark.parametrize(
    "text",
    [
        *NO_MESSAGES[:11],
        *NO_MESSAGES[-3:],
        '{"response":{"requestId":"i"}}',
        '{"accept":{"id":"i","connectHeaders":{}}}',
        '{"accept":{"address":"a","id":"i","connectHeaders":{"a":1}}}',
        '{"accept":{"address":"a","id":"i","connectHeaders":{}},"request":{"address":"a","id":"i"}}',
        '{"accept":"\ud800"}',
    ],
)
def test_what_is_no_message_of_a_relay(text):
    """spec 6.2: our listener ignores what it does not know, as .NET does."""
    assert messages.parse_from_relay(text) is None


# Properties ---------------------------------------------------------------------------------------------------------

header_dicts = st.dictionaries(strategies.header_names, strategies.header_values, max_size=5)
endpoints = st.builds(RemoteEndpoint, st.ip_addresses().map(str), st.integers(0, 65_535))
texts = st.text(max_size=20)


@given(st.builds(Accept, texts, strategies.tracking_ids, header_dicts, endpoints))
def test_accept_then_parse(message):
    """spec 7.1: what we write we read back, Latin-1 header bytes included."""
    encoded = messages.encode_accept(message)
    assert messages.parse_from_relay(encoded) == message
    assert json.loads(encoded)["accept"]["connectHeaders"] == message.connectHeaders


@given(
    st.builds(
        Request, texts, texts, st.none() | texts, st.none() | texts, st.none() | endpoints, st.none() | header_dicts,
        st.none() | st.booleans(),
    )
)  # fmt: skip
def test_request_then_parse(message):
    """spec 9.3: what we write we read back, and a member that is None is not there at all."""
    encoded = messages.encode_request(message)
    assert messages.parse_from_relay(encoded) == message
    assert None not in json.loads(encoded)["request"].values()


@given(st.builds(Response, texts, st.integers(200, 999), texts, header_dicts, st.booleans()))
def test_response_then_parse(message):
    """spec 9.7: what we write we read back."""
    assert messages.parse_from_listener(messages.encode_response(message)) == message


@given(texts)
def test_renew_token_then_parse(token):
    """spec 6.4: what we write we read back."""
    assert messages.parse_from_listener(messages.encode_renew_token(token)) == RenewToken(token)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["accept", "request", "response", "renewToken", "token", "requestId", "statusCode", "body",
                         "address", "id", "connectHeaders", "responseHeaders", "statusDescription"]) | texts,
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(strategies.hostile_text | json_values.map(json.dumps))
def test_no_input_raises_anything(text):
    """spec 6.2: any text is a message or None."""
    for parse in (messages.parse_from_listener, messages.parse_from_relay):
        message = parse(text)
        assert message is None or isinstance(message, msgspec.Struct)


def test_hostile_numbers_cost_no_time():
    """failures: a number of many digits must not burn seconds."""
    start = time.process_time()
    for number in ("9" * 60_000, "1e999999999", '"' + "9" * 60_000 + '"'):
        messages.parse_from_listener('{"response":{"requestId":"i","statusCode":' + number + "}}")
    assert time.process_time() - start < 1
