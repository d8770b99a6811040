"""Thin typed face of the C library (``native/``): frames and masks, receive buffers, the brain of a joined
session, and the engine that moves its bytes.

It knows ffi and nothing with a policy: no idea who is connected, no sockets and no clock but in the engine's threads.
A call crosses into C once, with everything that one receive brought.
"""

from .engine import Engine, EngineEnd, EngineStatistics, Job, engine_is_available
from .frames import Decoder, FramingError, apply_mask, encode_frame, mask_implementation
from .pool import HEADROOM_BYTES, Buffer, Pool, PoolStatistics
from .session import DirectionStatistics, Session, SessionStatistics, Step, StepEvent

__all__ = [
    "HEADROOM_BYTES",
    "Buffer",
    "Decoder",
    "DirectionStatistics",
    "Engine",
    "EngineEnd",
    "EngineStatistics",
    "FramingError",
    "Job",
    "Pool",
    "PoolStatistics",
    "Session",
    "SessionStatistics",
    "Step",
    "StepEvent",
    "apply_mask",
    "encode_frame",
    "engine_is_available",
    "mask_implementation",
]
