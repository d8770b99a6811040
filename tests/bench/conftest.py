"""The benchmarks are no installed package: they are imported from the root of the tree."""

import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)


@pytest.fixture(scope="session")
def sanitized_program(tmp_path_factory):
    """The load generator under the sanitizers: one that corrupts memory measures nothing."""
    from bench.loadgen import FLAGS, build

    return build(
        tmp_path_factory.mktemp("load") / "rcload",
        [*FLAGS, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    )


@pytest.fixture(scope="module")
def sanitized_load(sanitized_program):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.loadgen.build", lambda: sanitized_program)
        yield
