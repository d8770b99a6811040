"""Every number of the protocol, with its unit and where it comes from (sections are of the wire contract)."""

from __future__ import annotations

from typing import Final

# Sizes, in bytes -----------------------------------------------------------------------------------------------------

MAX_FRAME_TO_CLIENT_BYTES: Final = 65_536
"""No frame larger than this leaves towards a client (8.2: the Java client closes on one byte more)."""

MAX_CONTROL_MESSAGE_BYTES: Final = 65_536
"""One JSON message on a control channel (6.2: .NET and Java receive into 64 KiB)."""

MAX_CONTROL_BODY_BYTES: Final = 65_536
"""One binary body message on a control channel (15)."""

MAX_REQUEST_HEADERS_BYTES: Final = 32_768
"""Request headers in all (15: 32 kB of header metadata)."""

MAX_CLOSE_REASON_BYTES: Final = 123
"""UTF-8 bytes of a close reason (RFC 6455 5.5: 125 less the code)."""

MAX_REASON_PHRASE_CHARS: Final = 1_000
"""A refusal's reason phrase (12: below about 1 kB)."""

MAX_CREDENTIAL_CHARS: Final = 256
"""Rule name and key in a connection string (5.8)."""

MAX_HEAD_BYTES: Final = 65_536
"""A whole request or response head, start line included: twice the 32 kB that headers may have (15)."""

MAX_START_LINE_BYTES: Final = 16_384
"""Request or status line. nginx and Apache stop at 8 kB; a token in our queries may be a JWT of several, escaped."""

MAX_CHUNK_LINE_BYTES: Final = 1_024
"""A chunk's size line, extensions included; longer ones only serve to burn time."""

MAX_TRAILER_BYTES: Final = 8_192
"""All trailer fields behind a chunked body; they are read and dropped."""

# Clocks, in seconds --------------------------------------------------------------------------------------------------

ACCEPT_TIMEOUT: Final = 30.0
"""From the ``accept`` message to the rendezvous handshake (14)."""

TOKEN_ALLOWANCE: Final = 300.0
"""How long after its expiry a token still counts (5.6: SDKs renew at the very instant)."""

PING_INTERVAL: Final = 60.0
"""Silence on a control channel before the relay pings (6.3)."""

PINGS_UNANSWERED: Final = 2
"""Unanswered pings after which a listener counts as lost (6.3)."""

ACCEPT_DOUBT: Final = 2.0
"""How long an ``accept`` may be unanswered, and nothing heard of its listener, before the relay pings (6.3, 6.5). Most
listeners come within milliseconds; those that dial something first answer the ping."""

SIGN_OF_LIFE_TIMEOUT: Final = 10.0
"""How long a listener may be silent after that ping. With `ACCEPT_DOUBT` less than half of `ACCEPT_TIMEOUT`, so that
the sender still has time for another listener."""

HTTP_RESPONSE_TIMEOUT: Final = 60.0
"""From a request to its ``response`` (14)."""

HTTP_BODY_TIMEOUT: Final = 60.0
"""Silence inside a body of a relayed request or response (9.8, 14)."""

REQUEST_GATHER_TIMEOUT: Final = 0.1
"""How long the relay reads on in a chunked request before it decides on the way (9.2)."""

HALF_CLOSED_TIMEOUT: Final = 600.0
"""Idle limit of a session once one side has sent Close (8.7)."""

SENDER_CONNECT_TIMEOUT: Final = 70.0
"""How long a sender waits for its 101 (14)."""

LISTENER_RENDEZVOUS_TIMEOUT: Final = 20.0
"""How long a listener tries to reach a rendezvous address (14)."""

CLOSE_TIMEOUT: Final = 10.0
"""How long we wait for the answer to a Close that we sent."""

TOKEN_LIFETIME: Final = 3_600.0
"""Lifetime of the tokens that our own clients make (14)."""

MIN_TOKEN_RENEWAL: Final = 240.0
"""A renewal timer is never shorter (5.6)."""

DEFAULT_OPERATION_TIMEOUT: Final = 60.0
"""A connection string without ``OperationTimeout`` (5.8)."""

RECONNECT_DELAYS: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Back-off between attempts of a listener, the last one for ever (13, 14); ours are jittered."""

# Counts --------------------------------------------------------------------------------------------------------------

MAX_LISTENERS_PER_ENTITY: Final = 25
MAX_CONNECTIONS_PER_NAMESPACE: Final = 5_000
MAX_ENTITIES_PER_NAMESPACE: Final = 10_000
MAX_RULES_PER_LEVEL: Final = 12
"""All four: section 15."""

MAX_HEADERS: Final = 200
"""Header lines in a head. Apache stops at 100, Node at 2 000; a browser behind proxies sends about 40."""

MAX_ENTITY_NAME_CHARS: Final = 260
"""Management contract 3.2."""

MAX_RULE_NAME_CHARS: Final = 50
"""Management contract 3.4."""

MAX_USER_METADATA_CHARS: Final = 1_024
"""Management contract 3.2."""
