"""Words without behaviour that every room may use."""

from __future__ import annotations

import enum
from typing import NewType, TypeAlias

BytesLike: TypeAlias = bytes | bytearray | memoryview
"""Input that our decoders and streams take; never kept after the call returns."""

ListenerId = NewType("ListenerId", str)
"""Identity of one control channel: the GUID of its ``sb-hc-id``, lower case."""

RendezvousId = NewType("RendezvousId", str)
"""The unguessable part of a rendezvous address (``sb-hc-rid``)."""

TrackingId = NewType("TrackingId", str)
"""``<guid>_G<n>``: stands in every refusal and log line, and is shown to the peer."""


class Right(enum.Enum):
    """A claim of an authorization rule. ``MANAGE`` implies the other two."""

    LISTEN = "Listen"
    SEND = "Send"
    MANAGE = "Manage"


class Action(enum.Enum):
    """Value of ``sb-hc-action``."""

    LISTEN = "listen"
    CONNECT = "connect"
    ACCEPT = "accept"
    REQUEST = "request"


class LegKind(enum.Enum):
    """What we are on one side of a session."""

    WS_SERVER = "ws-server"  # the peer is a WebSocket client: masked in, unmasked out
    WS_CLIENT = "ws-client"  # the peer is a WebSocket server: unmasked in, masked out
    RAW = "raw"  # plain bytes both ways


class Direction(enum.Enum):
    """Which way bytes move through a session."""

    TO_LISTENER = "to_listener"
    TO_SENDER = "to_sender"


class RefusalReason(enum.Enum):
    """Why the relay said no: the code word in logs and the label in metrics."""

    ENDPOINT_NOT_FOUND = "endpoint_not_found"
    MISSING_TOKEN = "missing_token"
    MALFORMED_TOKEN = "malformed_token"
    INVALID_SIGNATURE = "invalid_signature"
    EXPIRED_TOKEN = "expired_token"
    INVALID_AUDIENCE = "invalid_audience"
    RIGHT_MISSING = "right_missing"
    NO_LISTENER = "no_listener"
    LISTENER_FILTER = "listener_filter"
    ACCEPT_TIMEOUT = "accept_timeout"
    LISTENER_QUOTA = "listener_quota"
    CONNECTION_QUOTA = "connection_quota"
    ENTITY_QUOTA = "entity_quota"
    RULE_QUOTA = "rule_quota"
    BAD_REQUEST = "bad_request"
    HEAD_TOO_LARGE = "head_too_large"
    HEAD_TIMEOUT = "head_timeout"
    RENDEZVOUS_GONE = "rendezvous_gone"
    REJECTED = "rejected"
    WEBSOCKET_DISABLED = "websocket_disabled"
    HTTP_DISABLED = "http_disabled"
    LISTENER_LOST = "listener_lost"
    RESPONSE_TIMEOUT = "response_timeout"
    BODY_TIMEOUT = "body_timeout"
    ENTITY_EXISTS = "entity_exists"
    PRECONDITION = "precondition"
    NOT_SUPPORTED = "not_supported"
    SERVER_BUSY = "server_busy"
    SHUTTING_DOWN = "shutting_down"
    INTERNAL = "internal"


class CloseBy(enum.Enum):
    """Who ended a session or a control channel, for logs and counters."""

    SENDER = "sender"
    LISTENER = "listener"
    RELAY = "relay"
