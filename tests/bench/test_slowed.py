import subprocess
import sys

import pytest

from bench import slowed
from bench.processes import BenchError


def test_a_slowed_copy_takes_the_portable_mask_without_the_optimiser(tmp_path):
    slowed.copy_slowed(tmp_path)
    assert '"-O0"' in (tmp_path / "native" / "build_native.py").read_text()
    asked = [sys.executable, "-c", "import relaycore._native as n; print(n.__file__, n.mask_implementation())"]
    said = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert said == [str(tmp_path / "relaycore" / "_native" / "__init__.py"), "portable"]


def test_what_can_no_longer_be_slowed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(slowed, "OPTIMISED", '"-O9"')
    with pytest.raises(BenchError, match="cannot be slowed"):
        slowed.copy_slowed(tmp_path)
