"""The top of the command line: help, unknown commands, how errors leave, and how quick it starts."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from relaycore import errors
from relaycore.cli import app
from relaycore.cli.app import COMMANDS, called_as, cli
from relaycore.cli.exits import ExitCode

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="


def invoke(*args: str, **kwargs):
    return CliRunner().invoke(cli, list(args), **kwargs)


def run(*args: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "relaycore", *args], capture_output=True, text=True, **kwargs)


def test_help_names_every_command():
    result = invoke("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"  {name} " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name):
    result = invoke(name, "--help")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("Usage: ")


def walk(command: click.Command, path: tuple[str, ...] = ()):
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from walk(command.get_command(context, name), (*path, name))


ALL = dict(walk(cli))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_and_command_says_what_it_is_for(path):
    command = ALL[path]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(path)} {parameter.opts[0]}"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_no_option_takes_a_secret(path):
    """A key on a command line shows in ps. ``bridge`` has azbridge's own flags, and takes keys out of there at once."""
    if path == ("bridge",):
        return
    for parameter in ALL[path].params:
        if not isinstance(parameter, click.Option):
            continue
        for name in parameter.opts:
            takes_text = not parameter.is_flag and parameter.metavar not in ("-", "FILE")
            takes_text &= not name.endswith(("-env", "-credential"))  # these name a place, as --tls-key names a file
            assert not (takes_text and any(word in name for word in ("key", "token", "secret", "connection-string"))), (
                name
            )


def test_an_unknown_command_is_told_the_nearest():
    result = invoke("lisen")
    assert result.exit_code == ExitCode.USAGE
    assert "Did you mean 'listen'?" in result.stderr
    assert "Did you mean" not in invoke("xyzzy").stderr


def test_version_flag_and_command_agree():
    assert invoke("--version").stdout.split()[-1] in invoke("version").stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("no such setting"), ExitCode.CONFIG),
        (errors.AuthorizationFailed("InvalidSignature: The token has an invalid signature"), ExitCode.AUTHORIZATION),
        (errors.Refused("x", http_status=403), ExitCode.AUTHORIZATION),
        (errors.EndpointNotFound("Endpoint does not exist: a"), ExitCode.NOT_FOUND),
        (errors.NoListener("There are no listeners"), ExitCode.NOT_FOUND),
        (errors.EndpointAlreadyExists("a"), ExitCode.EXISTS),
        (errors.ServerBusy("later"), ExitCode.REFUSED),
        (errors.Rejected("go away", http_status=410), ExitCode.REFUSED),
        (errors.ConnectionLost("cannot reach relay.example:443: Connection refused"), ExitCode.CONNECTION),
        (ConnectionRefusedError(111, "Connection refused"), ExitCode.CONNECTION),
        (TimeoutError("too slow"), ExitCode.CONNECTION),
        (errors.RelayError("anything else"), ExitCode.FAILED),
        (OSError(28, "No space left on device"), ExitCode.FAILED),
        (ExceptionGroup("", [ExceptionGroup("", [errors.EndpointNotFound("a")])]), ExitCode.NOT_FOUND),
        (ExceptionGroup("", [RuntimeError("b"), errors.EndpointNotFound("a")]), ExitCode.NOT_FOUND),
    ],
)
def test_an_error_is_one_line_and_a_code(monkeypatch, error, code):
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(app.LazyGroup, "get_command", lambda self, ctx, name: fail)
    result = invoke("version")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("relaycore: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_a_bug_is_named_and_shows_its_place_on_demand(monkeypatch):
    @click.command()
    def fail() -> None:
        raise RuntimeError(f"SharedAccessKey={KEY}")

    monkeypatch.setattr(app.LazyGroup, "get_command", lambda self, ctx, name: fail)
    quiet, loud = invoke("version"), invoke("--debug", "version")
    assert quiet.exit_code == loud.exit_code == ExitCode.FAILED
    assert "internal error: RuntimeError" in quiet.stderr
    assert "--debug" in quiet.stderr
    assert "Traceback" in loud.stderr
    assert KEY not in quiet.stderr + loud.stderr


def test_a_refusal_shows_its_tracking_id(monkeypatch):
    @click.command()
    def fail() -> None:
        raise errors.EndpointNotFound("Endpoint does not exist: a", tracking_id="0f3c_G0")

    monkeypatch.setattr(app.LazyGroup, "get_command", lambda self, ctx, name: fail)
    assert "(tracking id 0f3c_G0)" in invoke("version").stderr


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), BaseExceptionGroup("", [BaseExceptionGroup("", [KeyboardInterrupt()]), OSError("so what")])],
    ids=["alone", "in nurseries"],
)
def test_an_interrupted_command_leaves_as_shells_expect(monkeypatch, error):
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(app.LazyGroup, "get_command", lambda self, ctx, name: fail)
    result = invoke("version")
    assert result.exit_code == ExitCode.INTERRUPTED == 130
    assert result.stderr.strip() == ""


def test_an_untrusted_certificate_is_told_the_way_out(monkeypatch):
    @click.command()
    def fail() -> None:
        raise errors.ConnectionLost("TLS with localhost failed") from ssl.SSLCertVerificationError()

    monkeypatch.setattr(app.LazyGroup, "get_command", lambda self, ctx, name: fail)
    result = invoke("version")
    assert result.exit_code == ExitCode.CONNECTION
    assert "--cafile" in result.stderr


def test_a_closed_pipe_is_no_news():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "relaycore", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (ExitCode.BROKEN_PIPE, "")


# How it was called ---------------------------------------------------------------------------------------------------


def test_the_name_of_the_program_can_be_pasted(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "bin" / "relay core"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert called_as() == "'bin/relay core'"  # below the working directory: short, and quoted
    assert called_as(from_anywhere=True) == f"'{program}'"
    monkeypatch.setenv("PATH", str(program.parent))
    assert called_as() == "relay core"  # found by its bare name
    monkeypatch.setattr(sys, "argv", ["/elsewhere/relaycore/__main__.py"])
    assert called_as().endswith("-m relaycore")
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/relaycore"])
    assert called_as() == "/usr/local/bin/relaycore"


# Quick start ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [("--help",), ("version",), ("version", "--json"), ("completion", "bash")])
def test_commands_without_a_network_load_no_event_loop(args):
    code = (
        "import sys; from relaycore.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('trio', 'msgspec', 'ssl', 'asyncio') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_help_starts_in_no_time():
    """150 ms on an idle machine; the best of several, measured against bare Python, so that a busy one does not
    matter."""

    def best_of(*args: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *args], capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    bare = best_of("-c", "pass")
    assert best_of("-m", "relaycore", "--help") < max(0.150, 10 * bare)


# Completion and versions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script(shell):
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert "_RELAYCORE_COMPLETE" in result.stdout
    assert invoke("completion", "tcsh").exit_code == ExitCode.USAGE


def test_the_shell_completes_commands_and_options():
    def complete(*words: str) -> str:
        environ = {
            **os.environ,
            "_RELAYCORE_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["relaycore", *words]),
            "COMP_CWORD": str(len(words)),
        }
        return run(env=environ).stdout

    assert complete("se").split() == ["plain,serve", "plain,send"]
    assert "plain,regenerate" in complete("keys", "re")
    assert "plain,--tls-cert" in complete("serve", "--tls-c")


def test_version_json():
    import json

    versions = json.loads(invoke("version", "--json").stdout)
    assert set(versions) == {"relaycore", "python", "trio", "cffi", "mask"}
    assert versions["mask"] in ("portable", "sse2", "avx2", "neon")
