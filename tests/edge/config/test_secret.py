"""Where secrets are kept, and that nothing shows them."""

from __future__ import annotations

import os

import pytest

from relaycore.edge.config.secret import Secret
from relaycore.errors import ConfigError

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(f" {KEY}\n")
    return path


def test_a_file_is_read_again_each_time(file):
    secret = Secret("file", str(file))
    assert secret.read() == KEY
    file.write_text("other")
    assert secret.read() == "other"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_can_open_is_refused(file, mode):
    file.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        Secret("file", str(file), "f.toml:3").read()
    assert caught.value.source == "f.toml:3"
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("mode", [0o444, 0o644, 0o640])
def test_whoever_owns_a_file_decides_who_reads_it(file, mode, monkeypatch):
    """Secrets of containers are root's, 0444 or 0644; the program is another user. ssh(1) has the same rule."""
    file.chmod(mode)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert Secret("file", str(file)).read() == KEY


def test_a_file_that_cannot_be_changed_counts_as_it_is(file, monkeypatch):
    """Root in a container, with a secret of root's that the engine has mounted read-only."""
    file.chmod(0o444)
    real = os.fstatvfs

    def mounted_read_only(fd: int):
        found = list(real(fd))
        found[8] |= os.ST_RDONLY
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "fstatvfs", mounted_read_only)
    assert Secret("file", str(file)).read() == KEY


def test_a_file_that_everybody_may_open_is_public(file):
    secret = Secret("file", str(file))
    assert not secret.is_public
    file.chmod(0o640)
    assert not secret.is_public
    file.chmod(0o644)
    assert secret.is_public
    file.unlink()
    assert not secret.is_public
    assert not Secret("inline", KEY).is_public


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "holds nothing"), (b" \n", "holds nothing"), (b"\xff", "not UTF-8"), (b"x" * 65_537, "longer")],
)
def test_a_file_that_holds_no_secret_is_named(file, data, said):
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=said) as caught:
        Secret("file", str(file)).read()
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent cannot be read: No such file"):
        Secret("file", str(tmp_path / "absent")).read()


def test_a_variable_is_looked_up_each_time():
    environ = {"A": f" {KEY} "}
    secret = Secret("env", "A")
    assert secret.read(environ) == KEY
    del environ["A"]
    with pytest.raises(ConfigError, match="env:A holds nothing"):
        secret.read(environ)


def test_a_credential_is_systemd_s(tmp_path):
    (tmp_path / "orders").write_text(KEY)
    (tmp_path / "orders").chmod(0o440)  # whoever may read it is systemd's business
    secret = Secret("credential", "orders")
    assert secret.read({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == KEY
    with pytest.raises(ConfigError, match="CREDENTIALS_DIRECTORY is not set"):
        secret.read({})


def test_nothing_shows_it():
    secret = Secret("inline", KEY)
    assert secret.read() == KEY
    assert KEY not in repr(secret)
    assert str(secret) == "(inline)"
    assert str(Secret("file", "/k")) == "file:/k"


def test_where_it_is_named_makes_no_difference():
    assert Secret("file", "/k", "a.toml:1") == Secret("file", "/k", "b.toml:9")
    assert Secret("file", "/k") != Secret("env", "/k")


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    """It is read again for each token, and a pipe holds its text only once."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ConfigError, match=r"is no regular file|[Ii]s a directory"):
            Secret("file", str(path)).read()
