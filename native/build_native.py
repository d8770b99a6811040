"""FFI builder for ``relaycore._native._rc``, named by ``cffi_modules`` in setup.py.

The module is in cffi's API mode and keeps to the stable ABI. ``RELAYCORE_WERROR=1`` turns warnings into errors, those
of the wrapper that cffi generates included.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent

HEADERS = ("rc_mask.h", "rc_frame.h", "rc_decode.h", "rc_pool.h", "rc_session.h", "rc_engine.h", "rc_python.h")


def project_path(path: Path) -> str:
    """A path as setuptools wants it: relative to setup.py, so that it is the same on every machine."""
    return path.relative_to(PROJECT).as_posix()


compile_args = ["-std=c11", "-O2", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
if os.environ.get("RELAYCORE_WERROR") == "1":
    compile_args.append("-Werror")

ffibuilder = FFI()
ffibuilder.cdef((HERE / "relaycore.cdef").read_text(encoding="utf-8"))
ffibuilder.set_source(
    "relaycore._native._rc",
    "\n".join(f'#include "{name}"' for name in HEADERS),
    sources=sorted(project_path(path) for path in (HERE / "src").glob("rc_*.c")),
    depends=sorted(project_path(path) for folder in ("include", "src") for path in (HERE / folder).glob("rc_*.h")),
    include_dirs=[project_path(HERE / "include")],
    extra_compile_args=compile_args,
    extra_link_args=["-pthread"],
    py_limited_api=True,
)

if __name__ == "__main__":
    os.chdir(PROJECT)
    ffibuilder.compile(verbose=True)
