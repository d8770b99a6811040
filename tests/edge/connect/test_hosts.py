"""The hosts file: one block, everything else untouched, and what programs really get."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from relaycore.edge.connect.hosts import HostsFile, block_lines, check_names, parse_block, plain_name
from relaycore.edge.connect.status import Redirection
from relaycore.errors import ConfigError

SYSTEM = "127.0.0.1\tlocalhost\n::1 localhost ip6-localhost # loop\n\n10.0.0.9 printer.corp.example printer\n"

NAMES = (
    Redirection("orders", "SQLdb.corp.example", "127.77.1.1", 1433),
    Redirection("orders", "sqldb", "127.77.1.1", 1433),
    Redirection("web", "*.web.example", "127.77.2.2", 443),
    Redirection("web", "web.example.", "127.77.2.2", 443),
    Redirection("late", "sqldb", "127.77.9.9", 1433),
    Redirection("address", "10.0.0.7", "127.77.3.3", 80),
)

BLOCK = (
    "# relaycore connect: begin. Written by `relaycore connect hosts apply`; do not edit.\n"
    "127.77.1.1\tsqldb.corp.example\t# orders\n"
    "127.77.1.1\tsqldb\t# orders\n"
    "127.77.2.2\tweb.example\t# web\n"
    "# relaycore connect: end\n"
)


@pytest.fixture
def file(tmp_path: Path) -> HostsFile:
    path = tmp_path / "hosts"
    path.write_text(SYSTEM)
    return HostsFile(path)


def one(host: str, address: str = "127.77.1.1", forward: str = "f") -> Redirection:
    return Redirection(forward, host, address, 1)


# Text ----------------------------------------------------------------------------------------------------------------


def test_the_block():
    """connection manager 8.6: exact names only, in small letters, without a dot at the end; the first forward wins."""
    assert "".join(f"{line}\n" for line in block_lines(NAMES)) == BLOCK
    assert block_lines([NAMES[2]]) == []
    assert block_lines(()) == []


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("A.example.", "a.example"),
        ("a_b-c.example", "a_b-c.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.example", None),
        ("10.0.0.1", None),
        ("::1", None),
        ("", None),
        ("a b", None),
        ("a\nb", None),
        ("a#b", None),
        ("-a", None),
        ("a..b", None),
        ("x" * 254, None),
    ],
)
def test_names_that_a_file_can_hold(host: str, name: str | None):
    assert plain_name(host) == name


def test_a_forwards_name_cannot_break_out_of_its_comment():
    text = "\n".join(block_lines([one("a", forward="x\n10.0.0.1 evil")]))
    assert len(text.splitlines()) == 3


def test_what_was_printed_can_be_read_again():
    """For `hosts print | sudo relaycore connect hosts apply --from -`."""
    again = parse_block(BLOCK)
    assert [(found.host, found.address, found.forward) for found in again] == [
        ("sqldb.corp.example", "127.77.1.1", "orders"),
        ("sqldb", "127.77.1.1", "orders"),
        ("web.example", "127.77.2.2", "web"),
    ]
    assert block_lines(again) == block_lines(NAMES)
    assert parse_block("") == []


@pytest.mark.parametrize("text", ["10.0.0.1 a", "a 127.0.0.1", "127.0.0.1", "127.0.0.1 *.a", "# x\n::2 a", "nonsense"])
def test_what_nobody_printed(text: str):
    """It is read by root: nothing but loopback addresses."""
    with pytest.raises(ConfigError, match="no loopback address"):
        parse_block(text)


# Files ---------------------------------------------------------------------------------------------------------------


def test_apply_and_remove(file: HostsFile):
    """connection manager 8.6: one marked block, a backup, idempotent."""
    plan = file.apply(NAMES)
    assert file.path.read_text() == SYSTEM + BLOCK
    assert plan.added == (
        "sqldb -> 127.77.1.1",
        "sqldb.corp.example -> 127.77.1.1",
        "web.example -> 127.77.2.2",
    )
    assert (plan.is_changed, plan.removed) == (True, ())
    assert file.backup.read_text() == SYSTEM
    before = file.path.stat()
    again = file.apply(NAMES)
    assert (again.is_changed, again.added, again.removed) == (False, (), ())
    assert file.path.stat().st_mtime_ns == before.st_mtime_ns
    assert file.backup.read_text() == SYSTEM
    gone = file.remove()
    assert file.path.read_text() == SYSTEM
    assert len(gone.removed) == 3
    assert file.backup.read_text() == SYSTEM + BLOCK
    assert not file.remove().is_changed


def test_a_plan_changes_nothing(file: HostsFile):
    assert file.plan(NAMES).is_changed
    assert file.path.read_text() == SYSTEM
    assert not file.backup.exists()


def test_a_changed_address(file: HostsFile):
    file.apply([one("a.example")])
    plan = file.apply([one("a.example", "127.77.1.2")])
    assert plan.removed == ("a.example -> 127.77.1.1",)
    assert plan.added == ("a.example -> 127.77.1.2",)
    assert "127.77.1.1" not in file.path.read_text()


def test_it_is_written_in_place(file: HostsFile):
    """connection manager 7: a bind-mounted file follows writing, not renaming; mode and owner stay."""
    file.path.chmod(0o640)
    before = file.path.stat()
    with file.path.open() as mounted:
        file.apply(NAMES)
        assert mounted.read() == SYSTEM + BLOCK
        mounted.seek(0)
        file.remove()
        assert mounted.read() == SYSTEM
    after = file.path.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert stat.S_IMODE(file.backup.stat().st_mode) == 0o640


def test_a_link_stays_one(file: HostsFile, tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to(file.path)
    HostsFile(link).apply(NAMES)
    assert link.is_symlink()
    assert file.path.read_text() == SYSTEM + BLOCK


def test_the_block_is_rewritten_where_it_stands(file: HostsFile):
    file.path.write_text(SYSTEM + BLOCK + "10.0.0.1 behind\n")
    file.apply([one("a.example")])
    text = file.path.read_text()
    assert text.startswith(SYSTEM + "# relaycore connect: begin")
    assert text.endswith("127.77.1.1\ta.example\t# f\n# relaycore connect: end\n10.0.0.1 behind\n")
    file.remove()
    assert file.path.read_text() == SYSTEM + "10.0.0.1 behind\n"


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_the_last_line_may_have_no_end(file: HostsFile, end: str):
    file.path.write_text("127.0.0.1 localhost" + end)
    file.apply([one("a.example")])
    assert file.path.read_text().startswith("127.0.0.1 localhost" + (end or "\n") + "# relaycore connect: begin")


def test_other_line_ends_and_bytes_survive(file: HostsFile):
    data = b"127.0.0.1 localhost\r\n# \xff\xfe\x85 caf\xc3\xa9 \xe2\x80\xa8 x\r\n"
    file.path.write_bytes(data)
    file.apply([one("a.example")])
    found = file.path.read_bytes()
    assert found.startswith(data)
    assert b"\r\n127.77.1.1\ta.example\t# f\r\n" in found
    assert not file.apply([one("a.example")]).is_changed
    file.remove()
    assert file.path.read_bytes() == data


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            ["127.0.0.1 localhost\n", "# comment\n", "\n", "10.1.1.1 other.example x # c\n", "garbage\n", "\t\n"]
        ),
        st.text(alphabet="ab#. \t\x85é", max_size=12).map(lambda text: f"{text}\n"),
    ),
    max_size=12,
)
WANTED = st.lists(
    st.builds(
        one,
        st.sampled_from(["one.test", "two.test", "three", "*.four.test", "FIVE.test."]),
        st.sampled_from(["127.77.0.1", "127.77.0.2"]),
    ),
    max_size=5,
)


@given(lines=LINES, steps=st.lists(WANTED, min_size=1, max_size=4))
def test_any_file_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, lines: list[str], steps):
    """Whatever is applied, one after the other: the rest of the file is untouched, and removing leaves just that."""
    file = HostsFile(tmp_path_factory.mktemp("any") / "hosts")
    text = "".join(lines).encode()
    file.path.write_bytes(text)
    for wanted in steps:
        file.apply(wanted)
        assert not file.plan(wanted).is_changed
        assert file.path.read_bytes().startswith(text)
        ours = {name: address for _, address, name, is_ours in file.entries() if is_ours}
        expected: dict[str, str] = {}
        for found in wanted:
            if (name := plain_name(found.host)) is not None:
                expected.setdefault(name, found.address)
        assert ours == expected
    file.remove()
    assert file.path.read_bytes() == text


def test_foreign_entries_are_not_shadowed(file: HostsFile):
    """connection manager 8.6: refuses, names the line, changes nothing."""
    with pytest.raises(ConfigError) as caught:
        file.apply([one("ok.example"), one("Printer.corp.example"), one("printer")])
    found = "printer.corp.example is 10.0.0.9 there, and should be 127.77.1.1, and 1 more; nothing was changed."
    assert str(caught.value).startswith(f"{file.path}:4: {found}")
    assert file.path.read_text() == SYSTEM
    assert not file.backup.exists()


def test_a_foreign_entry_that_says_the_same_will_do(file: HostsFile):
    file.path.write_text("127.77.1.1 a.example\n")
    plan = file.apply([one("a.example"), one("b.example")])
    assert plan.elsewhere == ("a.example",)
    assert file.path.read_text().count("a.example") == 1
    file.path.write_text("127.77.1.1 a.example\n")
    assert not file.apply([one("a.example")]).is_changed


@pytest.mark.parametrize(
    "damage",
    [
        lambda block: block.replace("# relaycore connect: end\n", ""),
        lambda block: block.partition("\n")[2],
        lambda block: block + block,
        lambda block: "# relaycore connect: end\n" + block.replace("# relaycore connect: end\n", ""),
    ],
)
def test_a_damaged_block_is_left_to_people(file: HostsFile, damage):
    """Guessing where it ends could cost entries that somebody needs."""
    text = SYSTEM + damage(BLOCK)
    file.path.write_text(text)
    for act in (lambda: file.apply(NAMES), file.remove, file.entries):
        with pytest.raises(ConfigError, match=r"markers .* do not match \(lines \d"):
            act()
    assert file.path.read_text() == text


def test_files_that_cannot_be_used(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        HostsFile(tmp_path / "missing").apply(NAMES)
    with pytest.raises(ConfigError, match="cannot be read"):
        HostsFile(tmp_path / "missing").plan(NAMES)
    with pytest.raises(ConfigError, match="cannot be written: Is a directory"):
        HostsFile(tmp_path).apply(NAMES)


def test_without_the_right_to_write_the_way_is_told(file: HostsFile, monkeypatch: pytest.MonkeyPatch):
    """connection manager 8.11: what to do."""

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="Permission denied") as caught:
        file.remove()
    assert "hosts print | sudo relaycore connect hosts apply --from -" in str(caught.value)


def test_a_failing_backup_changes_nothing(file: HostsFile):
    file.backup.mkdir()
    with pytest.raises(ConfigError, match="nothing was changed"):
        file.apply(NAMES)
    assert file.path.read_text() == SYSTEM
    assert sorted(path.name for path in file.path.parent.iterdir()) == ["hosts", "hosts.relaycore-backup"]


def test_two_at_a_time_wait_for_each_other(file: HostsFile):
    """connection manager 8.6: a lock, so that no change is lost."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from relaycore.edge.connect.hosts import HostsFile\nfrom relaycore.edge.connect.status import Redirection\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "HostsFile(Path(sys.argv[1])).apply([Redirection('f', 'a.example', '127.77.1.1', 1)])\n"
        "print('done', flush=True)\n"
    )
    with (
        file.path.open() as held,
        subprocess.Popen(
            [sys.executable, "-c", program, file.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        fcntl.flock(held, fcntl.LOCK_EX)
        process.stdin.write("\n")
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        assert file.path.read_text() == SYSTEM
        file.path.write_text(SYSTEM + "10.0.0.1 new\n")
        fcntl.flock(held, fcntl.LOCK_UN)
        assert process.stdout.readline() == "done\n"
    assert file.path.read_text().startswith(SYSTEM + "10.0.0.1 new\n# relaycore connect: begin")


def test_whoever_reads_the_file_cannot_hold_us_up(file, monkeypatch):
    """Reading it is enough to lock it."""
    monkeypatch.setattr("relaycore.edge.connect.hosts._LOCK_TIMEOUT", 0.1)
    with file.path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="locked"):
            file.apply(NAMES)
    assert file.path.read_text() == SYSTEM
    file.apply(NAMES)


def test_the_backup_follows_no_link(file, tmp_path):
    """In a directory that others may write in, somebody may have put one where the backup begins."""
    other = tmp_path / "other"
    other.write_text("precious")
    file.backup.with_name(f"{file.backup.name}.{os.getpid()}").symlink_to(other)
    file.apply(NAMES)
    assert other.read_text() == "precious"
    assert file.backup.read_text() == SYSTEM
    assert not file.backup.is_symlink()


# Checks --------------------------------------------------------------------------------------------------------------


async def test_what_programs_get(file: HostsFile, monkeypatch: pytest.MonkeyPatch):
    """connection manager 8.6: `hosts check` tells which names an app would get wrong."""
    known = {
        "ok.example": ["127.77.1.1"],
        "away.example": ["203.0.113.7"],
        "both.example": ["127.77.1.1", "2001:db8::7"],
        "relaycore-check.wild.example": ["127.77.1.1"],
    }

    async def getaddrinfo(host: str, port: int | None, **options):
        await trio.lowlevel.checkpoint()
        if host == "broken.example":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known[host]]

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    file.path.write_text("127.77.1.1 ok.example\n")
    hosts = [
        "OK.example.",
        "away.example",
        "both.example",
        "*.wild.example",
        "none.example",
        "*.no.example",
        "broken.example",
    ]
    found = await check_names([one(host) for host in hosts], file)
    assert [check.verdict for check in found] == ["ok", "elsewhere", "mixed", "ok", "missing", "missing", "missing"]
    assert found[0].text == f"ok.example -> 127.77.1.1 ({file.path}:1)"
    assert found[1].text == "away.example -> 203.0.113.7: NOT redirected, expected 127.77.1.1"
    assert "only 127.77.1.1 leads to the relay" in found[2].text
    assert "no such name" in found[4].text
    assert "hosts apply" in found[4].text
    assert "dns setup" in found[5].text
    assert "Temporary failure" in found[6].text


async def test_the_system_is_really_asked():
    localhost, nothing = await check_names([one("localhost", "127.0.0.1"), one("no-such.invalid")])
    assert localhost.verdict in ("ok", "mixed")
    assert "127.0.0.1" in localhost.addresses
    assert nothing.verdict == "missing"


async def test_a_resolver_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch, autojump_clock):
    async def getaddrinfo(*_args, **_options):
        await trio.sleep_forever()

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    found = await check_names([one(f"n{number}.example") for number in range(40)])
    assert {check.verdict for check in found} == {"missing"}
    assert "no answer within 10 s" in found[0].text
