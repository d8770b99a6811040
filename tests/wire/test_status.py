"""Reason phrases, tracking ids and close codes, as the SDKs read them."""

from __future__ import annotations

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from relaycore import errors
from relaycore.vocab import RefusalReason
from relaycore.wire import status
from relaycore.wire.status import CloseCode

GUID = "12345678-1234-1234-1234-1234567890ab"
OTHER = "ffffffff-0000-4000-8000-000000000000"
NOON = 1_745_493_495.9  # 2025-04-24T11:18:15.9Z


def test_reason_phrase_form():
    """spec 12: message, TrackingId, SystemTracker and a UTC timestamp in this very form."""
    phrase = status.refusal_reason_phrase(
        "Endpoint does not exist: hyco", f"{GUID}_G0", "sb://relay.example/hyco", NOON
    )
    assert phrase == (
        f"Endpoint does not exist: hyco. TrackingId:{GUID}_G0, "
        "SystemTracker:sb://relay.example/hyco, Timestamp:2025-04-24T11:18:15"
    )


def test_reason_phrase_has_one_full_stop_after_the_message():
    """spec 12: a message that ends in a full stop does not get a second one."""
    assert status.refusal_reason_phrase("No. ", "t", "s", 0).startswith(
        "No. TrackingId:t, SystemTracker:s, Timestamp:1970"
    )


def test_reason_phrase_is_one_latin_1_line():
    """spec 12: Latin-1, single line; what a peer put into its path cannot end the status line."""
    phrase = status.refusal_reason_phrase("a\r\nSet-Cookie: x\0\u20ac\xe4", "t\r\n", "sb://n/\r\n", NOON)
    assert phrase.startswith("aSet-Cookie: x\xe4. TrackingId:t, ")
    assert "\r" not in phrase
    assert "\n" not in phrase
    phrase.encode("latin-1")


@pytest.mark.parametrize(
    ("message", "tracker"), [("m" * 5_000, "sb://n/e"), ("m", "s" * 5_000), ("m" * 5_000, "s" * 5_000)]
)
def test_reason_phrase_is_bounded(message, tracker):
    """spec 12: below about 1 kB, and the tracking id survives the cut."""
    phrase = status.refusal_reason_phrase(message, f"{GUID}_G0", tracker, NOON)
    assert len(phrase) <= 1_000
    assert status.parse_reason(phrase)[1] == f"{GUID}_G0"


@given(message=st.text(max_size=50), tracking=strategies.tracking_ids, tracker=st.text(max_size=50))
def test_reason_phrase_then_parse(message, tracking, tracker):
    """spec 12: message and tracking id are found again in the phrase."""
    phrase = status.refusal_reason_phrase(message, tracking, tracker, NOON)
    found_message, found_id = status.parse_reason(phrase)
    if "TrackingId:" not in message:
        assert found_id == tracking
        assert found_message == status.one_line(message).strip().rstrip(".").rstrip()


@pytest.mark.parametrize(
    ("reason", "message", "tracking_id"),
    [
        ("", "", ""),
        ("Rejected by user code.", "Rejected by user code.", ""),
        ("No. TrackingId:abc_G1, SystemTracker:x, Timestamp:y", "No", "abc_G1"),
        ("No. TrackingId:abc_G1,SystemTracker:x", "No", "abc_G1"),
        ("No. TrackingId: abc_G1", "No", "abc_G1"),
        ("No. TrackingId:abc.", "No", "abc"),
        ("TrackingId:abc", "", "abc"),
        ("TrackingId:", "TrackingId:", ""),
    ],
)
def test_parse_reason(reason, message, tracking_id):
    """spec 12: tracking information is split off; without any the text stays as it was."""
    assert status.parse_reason(reason) == (message, tracking_id)


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("Rejected by user code", "Rejected by user code"),
        ("two  blanks\tand a tab ", "two  blanks\tand a tab "),
        ("\"'(){}[]<>=/,:;@\\\xe4\xff", "\"'(){}[]<>=/,:;@\\\xe4\xff"),
        ("a\r\nb\0c\x7f", "abc"),
        ("\u20ac 5 \U0001f600\ud800", " 5 "),
        ("", ""),
    ],
)
def test_description_of_a_rejection(said, sent):
    """spec 7.3: CR, LF and what is not Latin-1 is stripped from a listener's words; the rest is verbatim."""
    assert status.one_line(said) == sent


@pytest.mark.parametrize(
    ("client_id", "expected"),
    [
        (GUID, f"{GUID}_G0"),
        (GUID.upper(), f"{GUID.upper()}_G0"),
        (f"{GUID}_G7", f"{GUID}_G0"),
        (f"{GUID}-more", f"{OTHER}_G0"),
        (f"{GUID}\n", f"{OTHER}_G0"),
        ("", f"{OTHER}_G0"),
        ("listener", f"{OTHER}_G0"),
        (None, f"{OTHER}_G0"),
    ],
)
def test_tracking_id(client_id, expected):
    """spec 7.1: the sender's id + _G0 if that is a GUID, else a fresh GUID."""
    assert status.make_tracking_id(client_id, OTHER) == expected


def test_tracking_id_names_the_node():
    """spec 1: <guid>_G<n> once the service has appended a node suffix."""
    assert status.make_tracking_id(GUID, OTHER, 12) == f"{GUID}_G12"


@given(strategies.guids)
def test_guids(guid):
    """spec 7.1: 36 characters, hyphens in their places, any hex case."""
    assert status.is_guid(guid)
    assert status.is_guid(guid.upper())
    assert not status.is_guid(guid + "0")
    assert not status.is_guid(guid.replace("-", ""))
    assert not status.is_guid("{" + guid + "}")


TAIL = ". TrackingId:abc_G0, SystemTracker:sb://n/e, Timestamp:2025-04-24T11:08:15"


@pytest.mark.parametrize(
    ("code", "message", "error", "reason"),
    [
        (401, "InvalidSignature: The token has an invalid signature", errors.AuthorizationFailed,
         RefusalReason.INVALID_SIGNATURE),
        (401, "ExpiredToken: x", errors.AuthorizationFailed, RefusalReason.EXPIRED_TOKEN),
        (401, "InvalidAudience: x", errors.AuthorizationFailed, RefusalReason.INVALID_AUDIENCE),
        (401, "MalformedToken: x", errors.AuthorizationFailed, RefusalReason.MALFORMED_TOKEN),
        (401, "MissingToken: x", errors.AuthorizationFailed, RefusalReason.MISSING_TOKEN),
        (401, "no", errors.AuthorizationFailed, RefusalReason.MISSING_TOKEN),
        (403, "no", errors.AuthorizationFailed, RefusalReason.RIGHT_MISSING),
        (404, "Endpoint does not exist: hyco", errors.EndpointNotFound, RefusalReason.ENDPOINT_NOT_FOUND),
        (404, "There are no listeners connected for the endpoint", errors.NoListener, RefusalReason.NO_LISTENER),
        (408, "slow", errors.GatewayTimeout, RefusalReason.ACCEPT_TIMEOUT),
        (504, "slow", errors.GatewayTimeout, RefusalReason.ACCEPT_TIMEOUT),
        (503, "busy", errors.ServerBusy, RefusalReason.SERVER_BUSY),
    ],
)  # fmt: skip
def test_errors_by_status(code, message, error, reason):
    """spec 12: how a status turns into an exception; tracking information is split from the message."""
    refused = status.refused_from_status(code, message + TAIL)
    assert type(refused) is error
    assert (refused.http_status, refused.message, refused.reason, refused.tracking_id) == (
        code,
        message,
        reason,
        "abc_G0",
    )
    assert status.refused_from_status(code, message).tracking_id == ""


@pytest.mark.parametrize("code", [400, 402, 409, 418, 500, 502, 599, 302])
@pytest.mark.parametrize("text", ["Rejected by user code", "", " odd  \xe4 text. ", "Out. TrackingId:x, Timestamp:y"])
def test_rejection_comes_out_verbatim(code, text):
    """spec 7.3: a sender sees exactly the listener's status and description."""
    refused = status.refused_from_status(code, text)
    assert type(refused) is errors.Rejected
    assert (refused.http_status, refused.message) == (code, text)


@pytest.mark.parametrize("code", [401, 403, 404, 408, 503, 504])
def test_rejection_with_a_status_of_the_relay_keeps_its_text(code):
    """spec 7.3: also with a status that the relay uses itself, a listener's words are not touched."""
    refused = status.refused_from_status(code, " not. today. ")
    assert (refused.http_status, refused.message) == (code, " not. today. ")


def test_standard_phrases():
    """spec 9.7: a missing description gives the standard phrase."""
    assert status.standard_phrase(404) == "Not Found"
    assert status.standard_phrase(799) == ""


def test_close_reason():
    """spec 13: <text>. TrackingId:<id>, at most 123 bytes."""
    assert status.close_reason("Gone.", "abc_G0") == b"Gone. TrackingId:abc_G0"
    assert status.close_reason("Gone.", "") == b"Gone."
    assert status.close_reason("\u20ac" * 100, "") == b"\xe2\x82\xac" * 41


@given(st.text(max_size=200), strategies.tracking_ids | st.text(max_size=200))
def test_close_reason_is_bounded_utf8(text, tracking_id):
    """RFC 6455 5.5: a close reason is at most 123 bytes of valid UTF-8."""
    reason = status.close_reason(text, tracking_id)
    assert len(reason) <= 123
    reason.decode("utf-8")


def test_close_codes():
    """RFC 6455 7.4: 1004, 1005, 1006, 1015 and unassigned numbers never stand in a Close frame."""
    allowed = {1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)}
    assert {code for code in range(65_536) if status.is_valid_close_code(code)} == allowed
    assert CloseCode.POLICY_VIOLATION == 1008


@given(st.text(max_size=80), st.integers(100, 999))
def test_no_reason_raises_anything(reason, code):
    """spec 12: any reason phrase is understood somehow."""
    assert isinstance(status.refused_from_status(code, reason), errors.Refused)
    assert isinstance(status.refused_from_status(code, reason + TAIL), errors.Refused)
