"""Hypothesis strategies that several test files share. Nothing here draws from the network, the clock or the disk.

Importing this file also chooses how long properties are tried: ``HYPOTHESIS_PROFILE`` is ``dev`` (the default), ``ci``
or ``soak``. None has a deadline for a single example, because a busy machine would fail it.
"""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, max_examples=300, print_blob=True)
settings.register_profile("soak", deadline=None, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

TOKEN_CHARS = "!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters
"""What an HTTP token may hold (RFC 9110 5.6.2)."""

guids = st.uuids().map(str)
"""A bare lower-case GUID, as most clients send in ``sb-hc-id``."""

tracking_ids = st.builds(lambda guid, node: f"{guid}_G{node}", guids, st.integers(0, 99))

rule_names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=50)

keys = st.text(string.ascii_letters + string.digits + "+/=", min_size=1, max_size=64)
"""Key text; never decoded, so it need not be Base64."""

host_names = st.from_regex(r"[a-z][a-z0-9-]{0,15}(\.[a-z][a-z0-9-]{0,15}){0,3}", fullmatch=True)

ports = st.integers(1, 65_535)

entity_segments = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,12}[A-Za-z0-9])?", fullmatch=True)

entity_paths = st.lists(entity_segments, min_size=1, max_size=5).map("/".join)
"""Names that management accepts for a hybrid connection."""

unescaped_paths = st.lists(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="/"), min_size=1, max_size=10),
    min_size=1,
    max_size=4,
).map("/".join)
"""A path before percent-encoding, with any text in its segments."""

header_names = st.text(TOKEN_CHARS, min_size=1, max_size=20)

header_values = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40
).map(lambda text: text.strip(" \t"))
"""Latin-1 text without controls. Only blanks and tabs are stripped: ``\\xa0`` is an ordinary byte."""

header_lists = st.lists(st.tuples(header_names, header_values), max_size=12)

targets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=40).map(
    lambda text: "/" + text
)
"""Origin-form request targets, also with characters that a strict URI parser refuses."""

raw_queries = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "",
                "a=1",
                "key='value'",
                "sb-hc-id=1",
                "SB-HC-token=x",
                "%73b-hc-x=",
                "sb-hc-undefined",
                "+",
                "%2f%3A",
                "a=b=c",
            ]
        ),
        st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="&#"), max_size=12),
    ),
    max_size=6,
).map("&".join)
"""Queries without their ``?``: user pieces, our own and near misses, in any order."""


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> Sequence[bytes]:
    """``data`` in pieces, as a network would hand it over; empty pieces are left out."""
    if not data:
        return []
    places = sorted(draw(st.sets(st.integers(1, len(data)), max_size=12)) | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


hostile_text = st.one_of(
    st.text(max_size=60),
    st.text('=&;%+/?#.:@ []{}"\\,\r\n\0\x7f\xe4\u20ac', max_size=60),
    st.text("sb-hc-tokenidactrSharedAccessSignature =&%2B1", max_size=80),
)
"""Text for decoders that must not raise anything undocumented."""
