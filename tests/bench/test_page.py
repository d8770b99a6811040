"""The page holds what the documents hold, whole and escaped."""

import json
from html.parser import HTMLParser

from bench import __main__ as program
from bench.loadgen import Job
from bench.page import page
from bench.report import document, summarise
from bench.suite import Pace, Run
from bench.workload import Workload

EVIL = "<img src=x onerror=alert(1)>"
BULK = Workload("bulk", EVIL, (Job("sink", 65_536),), headline="MiB/s", shows=("CPU s/GiB", "busy"))
READING = {"at_s": 60.0, "memory_bytes": 1 << 25, "open_files": 30, "threads": 2}


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def suite():
    figures = {"CPU s/GiB": 0.5, "busy": 0.5, "starved": 0.0}
    runs = [Run("bulk", "relay-trio", number, figures={"MiB/s": 100.0 + number, **figures}) for number in (0, 1)]
    runs += [Run("bulk", "direct", number, figures={"MiB/s": 200.0, **figures}) for number in (0, 1)]
    runs.append(Run("bulk", EVIL, 0, failure="lost"))
    summary = summarise(runs, [BULK], ["direct", "relay-trio", EVIL])
    more = {"settings": {"rounds": "2"}, "notes": ["- **noisy**", EVIL], "groups": {"Streams": ["bulk", "unknown"]}}
    return json.loads(json.dumps(document({"CPU": EVIL}, Pace(2, 0, 1), runs, summary, [BULK], **more)))


def test_a_suite_has_a_card_with_charts_and_every_figure():
    reader = read(page([suite()]))
    assert sum(tag == "svg" for tag, _ in reader.tags) == 2
    for text in ("100", "101", "200", "0.502 (0.500 .. 0.505)", "failed", "noisy", "had time to spare", "50%"):
        assert text in reader.text
    assert "**" not in reader.text


def test_nothing_is_loaded_and_nothing_is_markup():
    reader = read(page([suite()]))
    assert {tag for tag, _ in reader.tags} & {"script", "img", "link", "iframe", "object"} == set()
    assert not any(name in ("src", "onerror") for _, attributes in reader.tags for name in attributes)
    assert EVIL in reader.text


def test_connections_and_soak_have_their_charts():
    growth = {"readings": [[0, 1 << 20], [10, 2 << 20]], "each_bytes": 104_857.6}
    soak = {
        "samples": [READING, {**READING, "at_s": 120.0}],
        "early": READING,
        "late": READING,
        "work": {"bulk": {"runs": 3, "messages": 4_000, "bytes": 1 << 30}},
        "complaints": [],
    }
    text = page([{"machine": {}, "held": {"listeners": growth, "sessions": growth}}, {"machine": {}, "soak": soak}])
    reader = read(text)
    assert sum(tag == "svg" for tag, _ in reader.tags) == 4
    for found in ("102", "no growth beyond noise", "4 000"):
        assert found in reader.text


def test_a_page_is_made_of_files_written_before(tmp_path, capsys):
    source, target = tmp_path / "a.json", tmp_path / "a.html"
    source.write_text(json.dumps(suite()))
    assert program.main(["page", str(source), "--html", str(target)]) == 0
    read(target.read_text())
    assert program.main(["page", str(source)]) == 2
    assert "--html" in capsys.readouterr().err
