"""The table of docs/run.md says what this machine finds."""

from __future__ import annotations

import matrix
import pytest
import trio
from matrix import PAGE, PROGRAMS, RunMode, measure, read_table, write_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(request):
    """What was tried, by mode; nothing for modes that need namespaces where there are none."""
    modes = list(RunMode)
    try:
        request.getfixturevalue("namespaces")
    except pytest.skip.Exception:
        modes = [RunMode.ENV]
    return trio.run(measure, modes)


@pytest.mark.parametrize("mode", list(RunMode))
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.row)
def test_the_table_is_what_is_found(program, mode, found):
    """spec 7 of the connection manager: which methods serve which programs."""
    if program.missing:
        pytest.skip(f"not on this machine: {', '.join(program.missing)}")
    if mode not in found:
        pytest.skip("no namespaces for unprivileged users here")
    table = read_table(PAGE.read_text())
    if "VERSION" in program.row and program.title not in table:
        pytest.skip(f"the page knows no {program.title}; `make run-table` adds it")
    cell = table[program.title][list(RunMode).index(mode)]
    assert cell == ("yes" if found[mode][program.title] else "no"), "`make run-table` writes the table anew"


def test_a_table_is_written_and_read(monkeypatch):
    curl = next(program for program in PROGRAMS if program.row == "curl")
    monkeypatch.setattr(matrix, "PROGRAMS", (curl,))
    if curl.missing:
        pytest.skip("no curl")
    page = f"before\n{matrix.BEGIN}\n\n| a | b |\n| --- | --- |\n| Other | yes | no | no |\n{matrix.END}\nafter\n"
    written = write_table(page, {mode: {"curl": mode is RunMode.ENV} for mode in RunMode})
    assert read_table(written) == {"curl": ["no", "no", "yes"], "Other": ["yes", "no", "no"]}
    assert written.startswith("before\n")
    assert written.endswith("after\n")
