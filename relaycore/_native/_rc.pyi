# The cffi module as our own modules use it: handles are opaque, structs show the fields named in relaycore.cdef.
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol, overload

from relaycore.vocab import BytesLike

class CData(Protocol):
    """A handle. Its only use is to be handed back to ``ffi`` or ``lib``."""

    def __cffi_handle__(self) -> None: ...  # no object of ours has it

class CArea(Protocol):
    """What ``ffi.buffer`` gives: writable memory. A slice of it is a copy."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice) -> bytes: ...
    def __setitem__(self, index: slice, value: bytes) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class TwinPointer(CData, Protocol):
    def __getitem__(self, index: int) -> _Twin: ...

class _Twin(Protocol):
    name: CData

class SizePointer(CData, Protocol):
    def __getitem__(self, index: int) -> int: ...

class LeasePointer(CData, Protocol):
    def __getitem__(self, index: int) -> int: ...

class SlabPointer(CData, Protocol):
    def __getitem__(self, index: int) -> CData: ...

class PieceArray(CData, Protocol):
    def __getitem__(self, index: int) -> _Piece: ...

class _Piece(Protocol):
    offset: int
    length: int
    opcode: int
    fin: bool

class DecoderPointer(CData, Protocol):
    failure: int
    frames: int
    discarded_bytes: int

class PoolPointer(CData, Protocol):
    slab_bytes: int
    buffer_bytes: int
    buffers: int
    free_count: int
    peak: int
    exhausted: int

class _Lane(Protocol):
    early: CData
    early_bytes: int

class _LaneArray(Protocol):
    def __getitem__(self, index: int) -> _Lane: ...

class _Sockets(Protocol):
    def __setitem__(self, index: int, value: int) -> None: ...

class JobPointer(CData, Protocol):
    session: CData
    token: int
    sockets: _Sockets
    half_closed_ms: int
    close_ms: int
    idle_ms: int
    end: int
    by: int
    offender: int
    error: int
    lanes: _LaneArray

class EngineStatisticsPointer(CData, Protocol):
    jobs: int
    buffers_in_use: int
    starved: int
    buffers_peak: int
    exhausted: int
    completed: int
    turns: int
    receives: int
    sends: int
    blocked: int
    waits: int
    sleeps: int
    commands: int
    bytes_in: int
    bytes_out: int

class EngineHandlePointer(CData, Protocol):
    def __getitem__(self, index: int) -> CData: ...

class TokenArray(CData, Protocol):
    """``uint64_t[]``, read with ``ffi.unpack``."""

class StepPointer(CData, Protocol):
    out_offset: int
    out_bytes: int
    consumed: int
    events: int

class CountersPointer(CData, Protocol):
    bytes_in: int
    bytes_out: int
    payload_bytes: int
    discarded_bytes: int
    frames_in: int
    frames_out: int

class CodePointer(CData, Protocol):
    def __getitem__(self, index: int) -> int: ...

class SessionPointer(CData, Protocol):
    failure: int

class _FFI:
    NULL: Final[CData]
    @overload
    def new(self, ctype: Literal["struct rc_decoder *"]) -> DecoderPointer: ...
    @overload
    def new(self, ctype: Literal["struct rc_piece[]"], init: int) -> PieceArray: ...
    @overload
    def new(self, ctype: Literal["struct rc_pool *"]) -> PoolPointer: ...
    @overload
    def new(self, ctype: Literal["struct rc_session *"]) -> SessionPointer: ...
    @overload
    def new(self, ctype: Literal["struct rc_direction_counters *"]) -> CountersPointer: ...
    @overload
    def new(self, ctype: Literal["struct rc_step *"]) -> StepPointer: ...
    @overload
    def new(self, ctype: Literal["uint16_t *"]) -> CodePointer: ...
    @overload
    def new(self, ctype: Literal["size_t *"]) -> SizePointer: ...
    @overload
    def new(self, ctype: Literal["uint64_t *"]) -> LeasePointer: ...
    @overload
    def new(self, ctype: Literal["uint8_t **"]) -> SlabPointer: ...
    @overload
    def new(self, ctype: Literal["uint64_t[]"], init: int) -> TokenArray: ...
    @overload
    def new(self, ctype: Literal["struct rc_job *"]) -> JobPointer: ...
    @overload
    def new(self, ctype: Literal["struct rc_engine **"]) -> EngineHandlePointer: ...
    @overload
    def new(self, ctype: Literal["struct rc_engine_statistics *"]) -> EngineStatisticsPointer: ...
    @overload
    def new(self, ctype: Literal["uint8_t[]"], init: int) -> CData: ...
    def unpack(self, handle: TokenArray, length: int) -> list[int]: ...
    def from_buffer(self, ctype: Literal["uint8_t[]"], data: BytesLike, require_writable: bool = False) -> CData: ...
    def release(self, handle: CData) -> None: ...
    def buffer(self, handle: CData, size: int = -1) -> CArea: ...
    def string(self, handle: CData) -> bytes: ...
    def gc(self, handle: CData, destructor: Callable[[Any], object]) -> CData: ...
    def sizeof(self, ctype: str) -> int: ...

class _Lib:
    RC_OK: Final[int]
    RC_ENOBUF: Final[int]
    RC_ESTALE: Final[int]
    RC_ENOMEM: Final[int]
    RC_EPROTO_RSV: Final[int]
    RC_EPROTO_OPCODE: Final[int]
    RC_EPROTO_FRAGMENTED: Final[int]
    RC_EPROTO_CONTROL_LENGTH: Final[int]
    RC_EPROTO_UNMASKED: Final[int]
    RC_EPROTO_MASKED: Final[int]
    RC_EPROTO_LENGTH: Final[int]
    RC_EPROTO_CONTINUATION: Final[int]
    RC_EPROTO_INTERLEAVED: Final[int]
    RC_EPROTO_CLOSE_LENGTH: Final[int]
    RC_EPROTO_CLOSE_CODE: Final[int]
    RC_EPROTO_CLOSE_UTF8: Final[int]
    def rc_mask_twins(self, count: SizePointer) -> TwinPointer: ...
    def rc_mask_implementation(self) -> CData: ...
    def rc_python_mask(self, target: CData, source: CData, length: int, key: CData, phase: int) -> None: ...
    def rc_python_mask_with(self, twin: int, target: CData, source: CData, length: int, key: CData) -> int: ...
    RC_HEADER_MAX: Final[int]
    RC_CONTROL_MAX: Final[int]
    def rc_python_encode(
        self, out: CData, room: int, opcode: int, fin: bool, payload: CData, length: int, key: CData
    ) -> int: ...
    def rc_decoder_init(self, decoder: DecoderPointer, masked: bool) -> None: ...
    def rc_decode(
        self,
        decoder: DecoderPointer,
        data: CData,
        length: int,
        out: CData,
        out_room: int,
        pieces: PieceArray,
        room: int,
        consumed: SizePointer,
    ) -> int: ...
    RC_HEADROOM: Final[int]
    RC_POOL_BUFFERS_MAX: Final[int]
    RC_POOL_BUFFER_BYTES_MAX: Final[int]
    def rc_pool_open(self, pool: PoolPointer, buffers: int, buffer_bytes: int) -> int: ...
    def rc_pool_close(self, pool: PoolPointer) -> None: ...
    def rc_pool_take(self, pool: PoolPointer, lease: LeasePointer, slab: SlabPointer) -> int: ...
    def rc_pool_give(self, pool: PoolPointer, lease: int) -> int: ...
    def rc_pool_slab(self, pool: PoolPointer, number: int) -> CData: ...
    RC_LEG_WS_SERVER: Final[int]
    RC_LEG_WS_CLIENT: Final[int]
    RC_LEG_RAW: Final[int]
    RC_TO_LISTENER: Final[int]
    RC_TO_SENDER: Final[int]
    RC_FRAME_MAX: Final[int]
    RC_CLOSE_REASON_MAX: Final[int]
    RC_SESSION_SEED_BYTES: Final[int]
    RC_STEP_MORE: Final[int]
    RC_STEP_CONTROL_OWED_BACK: Final[int]
    RC_STEP_FINISHED: Final[int]
    RC_STEP_ABORT: Final[int]
    RC_STEP_PROTOCOL_ERROR: Final[int]
    RC_STEP_SOURCE_FINISHED: Final[int]
    def rc_session_init(self, session: SessionPointer, sender: int, listener: int, seed: bytes) -> int: ...
    def rc_session_translate(
        self, session: SessionPointer, direction: int, slab: CData, at: int, length: int, step: StepPointer
    ) -> int: ...
    def rc_session_translate_from(
        self,
        session: SessionPointer,
        direction: int,
        data: CData,
        length: int,
        out: CData,
        room: int,
        step: StepPointer,
    ) -> int: ...
    def rc_session_eof(
        self, session: SessionPointer, direction: int, out: CData, room: int, step: StepPointer
    ) -> int: ...
    def rc_session_control(
        self, session: SessionPointer, direction: int, out: CData, room: int, step: StepPointer
    ) -> int: ...
    def rc_session_owes_control(self, session: SessionPointer, direction: int) -> bool: ...
    def rc_session_close(self, session: SessionPointer, code: int, reason: bytes, length: int) -> int: ...
    def rc_session_is_finished(self, session: SessionPointer) -> bool: ...
    def rc_session_counters(
        self, session: SessionPointer, direction: int, counters: CountersPointer, close_code: CodePointer
    ) -> None: ...
    RC_ENGINE_THREADS_MAX: Final[int]
    RC_END_CLOSED: Final[int]
    RC_END_ABORTED: Final[int]
    RC_END_PROTOCOL_ERROR: Final[int]
    RC_END_HALF_CLOSED_TIMEOUT: Final[int]
    RC_END_RELAY_CLOSED: Final[int]
    RC_END_IDLE_TIMEOUT: Final[int]
    RC_END_CANCELLED: Final[int]
    RC_END_REFUSED: Final[int]
    RC_BY_RELAY: Final[int]
    RC_BY_SENDER: Final[int]
    RC_BY_LISTENER: Final[int]
    def rc_engine_is_available(self) -> bool: ...
    def rc_engine_open(self, engine: EngineHandlePointer, threads: int, buffers: int, buffer_bytes: int) -> int: ...
    def rc_engine_shut(self, engine: CData) -> None: ...
    def rc_engine_free(self, engine: CData) -> None: ...
    def rc_engine_fd(self, engine: CData) -> int: ...
    def rc_engine_submit(self, engine: CData, job: JobPointer) -> None: ...
    def rc_engine_close(self, engine: CData, job: JobPointer, code: int, reason: CData, length: int) -> int: ...
    def rc_engine_cancel(self, engine: CData, job: JobPointer) -> None: ...
    def rc_engine_completions(self, engine: CData, tokens: TokenArray, room: int) -> int: ...
    def rc_engine_statistics(self, engine: CData, statistics: EngineStatisticsPointer) -> None: ...

ffi: Final[_FFI]
lib: Final[_Lib]
