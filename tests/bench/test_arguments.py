"""What the command lines take, and how they complain about the rest."""

import argparse
import json

import pytest

from bench import __main__ as program
from bench import gate
from bench.arguments import count, output_file, positive, setting


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", ""])
def test_a_span_is_a_finite_number_above_0(text):
    assert positive("0.25") == 0.25
    with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
        positive(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", ""])
def test_a_count_is_a_whole_number_from_1_on(text):
    assert count("20") == 20
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 on"):
        count(text)


@pytest.mark.parametrize("text", ["limits.pool_buffers", "log.level=info", "="])
def test_a_setting_has_a_value_in_json(text):
    assert setting('log.level="info"') == 'log.level="info"'
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=JSON"):
        setting(text)


def test_a_file_can_be_written_and_is_not_touched_yet(tmp_path):
    path = tmp_path / "out.json"
    assert output_file(str(path)) == path
    assert not path.exists()
    for wrong in (tmp_path, tmp_path / "nowhere" / "out.json", path / "out.json"):
        with pytest.raises(argparse.ArgumentTypeError, match="directory"):
            output_file(str(wrong))


@pytest.mark.parametrize(
    "options",
    [["--rounds", "-1"], ["--seconds", "nan"], ["soak", "--minutes", "-1"], ["connections", "--sessions", "0"]],
)
def test_nothing_is_measured_with_senseless_numbers(options, capsys):
    with pytest.raises(SystemExit) as caught:
        program.main(options)
    assert caught.value.code == 2
    assert options[-1] in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path):
    for main, option in ((program.main, "--json"), (program.main, "--html")):
        with pytest.raises(SystemExit):
            main([option, str(tmp_path / "nowhere" / "file")])
    with pytest.raises(SystemExit):
        gate.main(["--record", "1", "--baseline", str(tmp_path / "nowhere" / "file")])


def test_a_page_of_something_else_is_refused(tmp_path, capsys):
    other = tmp_path / "other.json"
    for text in (None, "x", "{}", "[]"):
        if text is not None:
            other.write_text(text)
        assert program.main(["page", str(other), "--html", str(tmp_path / "page.html")]) == 2
        assert "other.json" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_gate_that_runs_no_time_is_none():
    with pytest.raises(SystemExit):
        gate.main(["--repeat", "0"])


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_number_above_0(tmp_path, limit, monkeypatch, capsys):
    monkeypatch.setattr(gate, "separate", lambda: None)
    monkeypatch.setattr(gate, "build", lambda: None)
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"ratios": {"a": {"median": 1.0, "limit": limit}}, "counts": {}}))
    assert gate.main(["--baseline", str(path)]) == 2
    assert "above 0" in capsys.readouterr().err


@pytest.mark.parametrize("module", [program, gate])
def test_an_interruption_is_no_traceback(module, monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "separate", interrupted)
    assert module.main([]) == 130
    assert "interrupted" in capsys.readouterr().err
