"""The four JSON messages: ``accept``, ``request``, ``response``, ``renewToken``.

One object per text message, one known member at the top. What the relay sends is narrow, because the SDKs' parsers are:
no other member, names in exactly this spelling, header values always strings. What it takes from a listener is wide.

Member names here are spelt as on the wire.

Source: wire contract 6.2, 6.4, 7.1, 9.3 and 9.7.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from .status import standard_phrase

__all__ = [
    "Accept",
    "FromListener",
    "FromRelay",
    "RemoteEndpoint",
    "RenewToken",
    "Request",
    "Response",
    "encode_accept",
    "encode_renew_token",
    "encode_request",
    "encode_response",
    "parse_from_listener",
    "parse_from_relay",
]


class RemoteEndpoint(msgspec.Struct, frozen=True):
    """Where a sender's connection came from: an IP literal and a port. Java's parser throws without it."""

    address: str
    port: int


class Accept(msgspec.Struct, frozen=True):
    """A sender waits behind ``address``.

    Attributes:
      address: rendezvous address, to be used as it is.
      id: tracking id; begins with a GUID.
      connectHeaders: the sender's handshake, see ``handshake.connect_headers``.
      remoteEndpoint: the sender; None when a relay that is not ours left it out.
    """

    address: str
    id: str
    connectHeaders: dict[str, str]
    remoteEndpoint: RemoteEndpoint | None = None

    def __repr__(self) -> str:
        return f"Accept(id={self.id!r})"  # the address is a secret, and headers may be


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """An HTTP request. Without ``method`` and ``body`` it says: come to ``address`` for it.

    Attributes:
      address: rendezvous address for a large request or response.
      id: echoed as ``requestId``; begins with a GUID.
      requestTarget: origin form, with the entity's path.
      method: as the sender wrote it; None in the address-only form.
      remoteEndpoint: the sender.
      requestHeaders: see ``handshake.request_headers``.
      body: whether one binary message follows; None in the address-only form, else always there.
    """

    address: str
    id: str
    requestTarget: str | None = None
    method: str | None = None
    remoteEndpoint: RemoteEndpoint | None = None
    requestHeaders: dict[str, str] | None = None
    body: bool | None = None

    @property
    def is_address_only(self) -> bool:
        """Whether the request itself waits behind ``address``."""
        return self.method is None

    def __repr__(self) -> str:
        return f"Request(id={self.id!r}, method={self.method!r})"


class Response(msgspec.Struct, frozen=True):
    """A listener's answer to a request.

    Attributes:
      requestId: the request's ``id``.
      statusCode: 200 to 999; what a listener sent outside of that is 502 here.
      statusDescription: reason phrase as sent; the standard one where it was missing.
      responseHeaders: values as sent; several strings for one name only from listeners of ours.
      body: whether one binary message follows.
    """

    requestId: str
    statusCode: int
    statusDescription: str = ""
    responseHeaders: dict[str, str | list[str]] = {}
    body: bool = False


class RenewToken(msgspec.Struct, frozen=True):
    """A fresh token for the control channel."""

    token: str

    def __repr__(self) -> str:
        return "RenewToken()"


FromListener: TypeAlias = RenewToken | Response
FromRelay: TypeAlias = Accept | Request

_MIN_STATUS: Final = 200
_MAX_STATUS: Final = 999
_UNUSABLE_STATUS: Final = 502

_Scalar: TypeAlias = str | int | float | bool | None


# What listeners may send is wider than what we keep, so it has shapes of its own (6.2).
class _WideResponse(msgspec.Struct, frozen=True):
    requestId: str
    statusCode: int | float | str | None = None
    statusDescription: str | None = None
    responseHeaders: dict[str, _Scalar | list[_Scalar]] | None = None
    body: bool | None = None


class _ListenerEnvelope(msgspec.Struct, frozen=True):
    renewToken: RenewToken | None = None
    response: _WideResponse | None = None


class _RelayEnvelope(msgspec.Struct, frozen=True):
    accept: Accept | None = None
    request: Request | None = None


_encoder = msgspec.json.Encoder()
_listener_decoder = msgspec.json.Decoder(_ListenerEnvelope)
_relay_decoder = msgspec.json.Decoder(_RelayEnvelope)


def _encode(message: dict[str, Accept | Request | Response | RenewToken]) -> str:
    return _encoder.encode(message).decode("utf-8")


def encode_accept(accept: Accept) -> str:
    """Return an ``accept`` message.

    It repeats what the sender put into its target and headers, so it can be longer than the
    ``limits.MAX_CONTROL_MESSAGE_BYTES`` that .NET and Java receive. Whoever sends it measures it first.
    """
    return _encode({"accept": accept})


def encode_request(request: Request) -> str:
    """Return a ``request`` message; its length is the caller's to measure, as with ``encode_accept``.

    Members that are None are left out: Java and Node tell the two forms of a request by them.
    """
    return _encode({"request": request})


def encode_response(response: Response) -> str:
    """Return a ``response`` message; its length is the caller's to measure, as with ``encode_accept``."""
    return _encode({"response": response})


def encode_renew_token(token: str) -> str:
    """Return a ``renewToken`` message."""
    return _encode({"renewToken": RenewToken(token=token)})


def parse_from_listener(text: str) -> FromListener | None:
    """Read a control message of a listener.

    Returns: the message; None for anything that is not one: malformed JSON, no known member or both. Ignore and count
      it (wire contract 6.2). Nothing is raised on any input.
    """
    try:
        envelope = _listener_decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return None
    if envelope.renewToken is not None:
        return envelope.renewToken if envelope.response is None else None
    return None if envelope.response is None else _narrow(envelope.response)


def parse_from_relay(text: str) -> FromRelay | None:
    """Read a control message of a relay.

    Returns: the message; None for anything that is not one, to be ignored as the SDKs do. Nothing is raised on any
      input.
    """
    try:
        envelope = _relay_decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return None
    if envelope.accept is not None:
        return envelope.accept if envelope.request is None else None
    return envelope.request


def _narrow(wide: _WideResponse) -> Response:
    status = _status_of(wide.statusCode)
    description = wide.statusDescription
    return Response(
        requestId=wide.requestId,
        statusCode=status,
        statusDescription=standard_phrase(status) if description is None else description,
        responseHeaders={name: _value_of(value) for name, value in (wide.responseHeaders or {}).items()},
        body=bool(wide.body),
    )


def _status_of(given: int | float | str | None) -> int:
    if isinstance(given, str) and not given.isascii():
        return _UNUSABLE_STATUS  # int() would take the digits of any script
    try:
        status = int(given or 0)
    except (ValueError, OverflowError):  # text that is no number, or an infinity
        return _UNUSABLE_STATUS
    return status if _MIN_STATUS <= status <= _MAX_STATUS else _UNUSABLE_STATUS


def _value_of(given: _Scalar | list[_Scalar]) -> str | list[str]:
    if isinstance(given, list):
        return [_text_of(value) for value in given]
    return _text_of(given)


def _text_of(value: _Scalar) -> str:
    """Return a header value as a listener's language would write it into a header."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
