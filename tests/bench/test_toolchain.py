"""The table of other people's programs, and what is said and done before one is built. Nothing is fetched here."""

import dataclasses
import re

import pytest

from bench import toolchain
from bench.processes import BenchError
from bench.toolchain import PINNED, PROGRAM, Program, fetch, fetch_all, go_module


@pytest.fixture
def programs(tmp_path, monkeypatch):
    monkeypatch.setattr(toolchain, "PROGRAMS", tmp_path / "programs")
    return tmp_path / "programs"


def make(program):
    for part in program.parts:
        program.path(part).parent.mkdir(parents=True, exist_ok=True)
        program.path(part).touch()


@pytest.mark.parametrize("program", PINNED, ids=lambda program: program.name)
def test_every_program_is_pinned_and_tells_how_to_get_it(program, programs):
    assert re.fullmatch(r"\d+\.\d+\.\d+", program.version)
    assert all(re.search(r"==\d", line) for line in program.beside)
    assert all("@v" in line for line in program.replaced)
    assert f"python -m bench fetch {program.name}" in program.missing()
    make(program)
    assert program.missing() is None


def test_half_a_program_is_missing(programs):
    frp = PROGRAM["frp"]
    make(frp)
    frp.path("frpc").unlink()
    assert frp.missing() is not None


def test_a_tool_that_is_not_here_is_named(programs, monkeypatch):
    monkeypatch.setattr(toolchain, "find_command", lambda name: None)
    assert "which needs cargo" in PROGRAM["bore"].missing()
    with pytest.raises(BenchError, match="needs cargo"):
        fetch(PROGRAM["bore"])


def test_a_go_program_brings_its_own_replacements():
    arguments = go_module(PROGRAM["frp"])
    assert ["mod", "edit", "-require=github.com/fatedier/frp@v0.61.1"] in arguments
    assert any(line[2].startswith("-replace=github.com/hashicorp/yamux=") for line in arguments)
    assert arguments[-1] == ["install", "github.com/fatedier/frp/cmd/frps", "github.com/fatedier/frp/cmd/frpc"]


def test_only_what_is_missing_is_fetched(programs, monkeypatch):
    fetched = []

    def build(program, to):
        fetched.append(program.name)
        make(dataclasses.replace(program, version="0.0.0"))
        (programs / f"{program.name}-0.0.0").rename(to)

    monkeypatch.setattr(toolchain, "find_command", lambda name: name)
    monkeypatch.setattr(toolchain, "_WAYS", dict.fromkeys(toolchain.COMMANDS, build))
    make(PROGRAM["chisel"])
    said = []
    assert fetch_all(["chisel", "bore"], said.append)
    assert fetched == ["bore"]
    assert said == ["chisel 1.10.1: there", "bore 0.6.0: built"]
    assert PROGRAM["bore"].missing() is None


def test_a_build_that_fails_leaves_nothing_and_the_others_go_on(programs, monkeypatch):
    def fail(program, to):
        to.mkdir()
        raise BenchError("no compiler")

    monkeypatch.setattr(toolchain, "find_command", lambda name: name)
    monkeypatch.setattr(toolchain, "_WAYS", dict.fromkeys(toolchain.COMMANDS, fail))
    said = []
    assert not fetch_all([], said.append)
    assert len(said) == len(PINNED)
    assert all("no compiler" in line for line in said)
    assert list(programs.iterdir()) == []


def test_a_failed_step_says_what_it_said():
    with pytest.raises(BenchError, match="it broke"):
        toolchain._run(["sh", "-c", "echo it broke; exit 3"])


def test_an_unknown_name_is_refused():
    with pytest.raises(BenchError, match="no program is called nonsense"):
        fetch_all(["nonsense"], print)


def test_python_packages_stand_in_the_directory_itself():
    program = Program("x", "1.2.3", "pip", "x", ("x",))
    assert program.path("x") == program.directory / "x"
