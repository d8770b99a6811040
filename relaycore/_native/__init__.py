"""Thin typed face of the C library (``native/``): frames and masks, receive buffers, the brain of a joined session.

It knows ffi and nothing with a policy: no sockets, no clock, no idea who is connected. A call crosses into C once, with
everything that one receive brought.
"""

from .frames import Decoder, FramingError, apply_mask, encode_frame, mask_implementation
from .pool import HEADROOM_BYTES, Buffer, Pool, PoolStatistics
from .session import DirectionStatistics, Session, SessionStatistics, Step, StepEvent

__all__ = [
    "HEADROOM_BYTES",
    "Buffer",
    "Decoder",
    "DirectionStatistics",
    "FramingError",
    "Pool",
    "PoolStatistics",
    "Session",
    "SessionStatistics",
    "Step",
    "StepEvent",
    "apply_mask",
    "encode_frame",
    "mask_implementation",
]
