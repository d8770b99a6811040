"""Masks and translation, in GB/s and messages per second: ``python -m bench.micro.frames [--json]``.

Everything is measured through the Python face, crossings included, since that is what a mover pays. Each figure is the
median of several interleaved rounds with the lowest and highest beside it; compare ratios, not machines. Working sets
fit the second-level cache: these are costs of the processor, and memory comes on top.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Final

from relaycore._native import Buffer, Decoder, Pool, Session, encode_frame, mask_implementation
from relaycore._native._rc import ffi, lib
from relaycore.vocab import Direction, LegKind

ROUNDS: Final = 9
ROUND_S: Final = 0.05
"""Seconds that one round of one case takes, about."""

BLOCK_BYTES: Final = 65_536
KEY: Final = b"\x37\xfa\x21\x3d"

Case = tuple[Callable[[], object], float, str]
"""What to call, how many units one call handles, and the unit."""


def mask_cases() -> dict[str, Case]:
    """Each twin that this processor can run, over one block in place."""
    count = ffi.new("size_t *")
    twins = lib.rc_mask_twins(count)
    block = ffi.new("uint8_t[]", BLOCK_BYTES)
    key = ffi.from_buffer("uint8_t[]", KEY)
    cases: dict[str, Case] = {}
    for index in range(count[0]):
        name = ffi.string(twins[index].name).decode("ascii")

        def run(index: int = index) -> None:
            lib.rc_python_mask_with(index, block, block, BLOCK_BYTES, key)

        cases[f"mask {name}"] = (run, BLOCK_BYTES, "B")
    return cases


def new_buffer() -> Buffer:
    buffer = Pool(buffers=1, buffer_bytes=BLOCK_BYTES).take()
    assert buffer is not None
    return buffer


def in_place(sender: LegKind, listener: LegKind) -> Case:
    """One message that fills a receive. Only its header is written anew for each call: translation does not look at the
    payload, so it may be what the last call made of it."""
    session, buffer = Session(sender, listener), new_buffer()
    header = b"" if sender is LegKind.RAW else encode_frame(2, bytes(BLOCK_BYTES - 8), mask=KEY)[:8]

    def run() -> None:
        buffer.window[: len(header)] = header
        session.translate(Direction.TO_LISTENER, buffer, BLOCK_BYTES)

    return run, BLOCK_BYTES, "B"


def apart(size: int) -> Case:
    """A receive of 64 KiB full of messages, translated into another buffer."""
    session, buffer = Session(LegKind.WS_SERVER, LegKind.WS_SERVER), new_buffer()
    frame = encode_frame(2, bytes(size), mask=KEY)
    count = BLOCK_BYTES // len(frame)
    data = frame * count
    return lambda: session.translate_from(Direction.TO_LISTENER, data, 0, buffer), count, "msg"


def translate_cases() -> dict[str, Case]:
    pairs = (
        (LegKind.WS_SERVER, LegKind.WS_SERVER),
        (LegKind.WS_SERVER, LegKind.WS_CLIENT),
        (LegKind.RAW, LegKind.WS_CLIENT),
    )
    cases = {f"translate 64 KiB {pair[0].value} to {pair[1].value}": in_place(*pair) for pair in pairs}
    return cases | {f"translate 64 KiB of {size} B messages": apart(size) for size in (16, 128, 1024)}


def single_cases() -> dict[str, Case]:
    """One small frame per crossing: what the border costs."""
    session = Session(LegKind.WS_SERVER, LegKind.WS_SERVER)
    buffer = new_buffer()
    frame = encode_frame(2, bytes(128), mask=KEY)
    decoder = Decoder(masked=True)

    def translate() -> None:
        buffer.window[: len(frame)] = frame
        session.translate(Direction.TO_LISTENER, buffer, len(frame))

    return {
        "translate 1 x 128 B in one receive": (translate, 1, "msg"),
        "decode 1 x 128 B in one receive": (lambda: decoder.receive(frame), 1, "msg"),
        "encode 1 x 128 B masked": (lambda: encode_frame(2, frame, mask=KEY), 1, "msg"),
    }


def rate(run: Callable[[], object], units: float, calls: int) -> float:
    """Units per second over that many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return units * calls / (time.perf_counter() - start)


def measure(cases: dict[str, Case]) -> dict[str, tuple[float, float, float, str]]:
    """Median, lowest, highest and unit per case; rounds of all cases take turns."""
    calls = {}
    for name, (run, units, _unit) in cases.items():
        rate(run, units, 20)  # caches, page faults
        calls[name] = max(20, int(ROUND_S * rate(run, units, 200) / units))
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, (run, units, _unit) in cases.items():
            found[name].append(rate(run, units, calls[name]))
    return {name: (statistics.median(rates), min(rates), max(rates), cases[name][2]) for name, rates in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    wants_json = parser.parse_args().json
    results = measure({**mask_cases(), **translate_cases(), **single_cases()})
    if wants_json:
        print(json.dumps({"mask": mask_implementation(), "results": results}))
        return
    print(f"mask in use: {mask_implementation()}")
    for name, (median, low, high, unit) in results.items():
        scale, label = (1e9, "GB/s") if unit == "B" else (1e6, "M msg/s")
        print(f"{name:48} {median / scale:8.2f} {label:8} ({low / scale:.2f} - {high / scale:.2f})")


if __name__ == "__main__":
    main()
