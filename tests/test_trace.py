"""Events: who hears of them, how they look, that nothing secret gets through and that nobody waits."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

from relaycore import trace as t
from relaycore.config import LogConfig
from relaycore.trace import Event, LogWriter, Trace, configure_logging, redact
from relaycore.vocab import RefusalReason

KEY = "c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmV0a2V5c2VjcmU="
SIGNATURE = "gy6PowuBl62F+gzPT1Xk5J0+SoI3W3L1HEeOoKvDDfA="
TOKEN = f"SharedAccessSignature sr=http%3A%2F%2Fh%2F&sig={SIGNATURE.replace('+', '%2B').replace('=', '%3D')}&se=1&skn=r"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJyZWxheSJ9.c2lnbmF0dXJl"
RENDEZVOUS = "ws://h/$hc/e?sb-hc-action=accept&sb-hc-id=1_G0&sb-hc-rid=Zx9-secret_Yw"


@pytest.fixture(params=["alone", "beside another handler"])
def lines(request):
    """What was logged, line by line, and a way to choose level and form; logging is as before afterwards."""
    root = logging.getLogger()
    relaycore = logging.getLogger("relaycore")
    handlers, level = list(root.handlers), relaycore.level
    written = io.StringIO()
    writers: list[LogWriter] = []

    root.handlers[:] = [] if request.param == "alone" else [logging.StreamHandler(io.StringIO())]

    class Lines:
        def configure(self, **settings) -> LogWriter:
            writers.append(configure_logging(LogConfig(**settings), write=written.write))
            return writers[-1]

        def read(self) -> list[str]:
            writers[-1].close()
            return written.getvalue().splitlines()

    yield Lines()
    for writer in writers:
        writer.close()
    root.handlers[:] = handlers
    relaycore.setLevel(level)


def emit_one(**fields) -> Event:
    trace = Trace(clock=lambda: 1_767_225_600.5)
    with trace.recorded() as events:
        trace.emit(t.CONNECTION_REFUSED, **fields)
    return events[0]


# Events --------------------------------------------------------------------------------------------------------------


def test_subscribers_hear_events_in_order_with_their_fields():
    trace = Trace(clock=lambda: 7.0)
    with trace.recorded() as events:
        trace.emit(t.LISTENER_REGISTERED, path="orders", tracking_id="x_G0", count=2)
        trace.emit(t.LISTENER_LOST, logging.WARNING, path="orders", cause=None)
    trace.emit(t.SERVER_STOPPED)
    assert [event.name for event in events] == ["listener.registered", "listener.lost"]
    assert events[0] == Event(
        "listener.registered", logging.INFO, 7.0, {"path": "orders", "tracking_id": "x_G0", "count": 2}
    )
    assert events[1].level == logging.WARNING


def test_enumerations_show_as_their_values():
    assert emit_one(reason=RefusalReason.NO_LISTENER).fields == {"reason": "no_listener"}


def test_an_unknown_event_is_our_bug():
    with pytest.raises(KeyError):
        Trace().emit("listener.regstered")


def test_every_event_is_noun_verb_with_a_constant():
    constants = {
        value for name, value in vars(t).items() if name[0].isupper() and name.isupper() and isinstance(value, str)
    }
    assert constants == set(t.EVENTS)
    assert all(name.replace(".", "").replace("_", "").isalpha() and name.count(".") == 1 for name in t.EVENTS)


def test_a_failing_subscriber_hurts_nobody_else(lines):
    lines.configure()
    trace = Trace()

    def fail(event: Event) -> None:
        raise RuntimeError("metrics are broken")

    trace.subscribe(fail)
    with trace.recorded() as events:
        trace.emit(t.SERVER_STARTED)
    assert len(events) == 1
    assert any("metrics are broken" in line for line in lines.read())


def test_unsubscribing_twice_is_harmless():
    trace = Trace()
    events: list[Event] = []
    end = trace.subscribe(events.append)
    end()
    end()
    trace.emit(t.SERVER_STARTED)
    assert events == []


def test_each_room_has_its_logger(lines):
    lines.configure(level="debug", format="json")
    trace = Trace()
    for name in t.EVENTS:
        trace.emit(name)
    found = {line["event"]: line["logger"] for line in map(json.loads, lines.read())}
    assert set(found) == set(t.EVENTS)
    assert found["server.started"] == found["tls.reloaded"] == found["token.refused"] == "relaycore.gateway"
    assert found["listener.lost"] == found["rendezvous.minted"] == "relaycore.control"
    assert found["session.closed"] == "relaycore.session"
    assert found["client.online"] == "relaycore.client"


# Forms ---------------------------------------------------------------------------------------------------------------


def test_the_human_form_is_one_line(lines):
    lines.configure()
    trace = Trace(clock=lambda: 1_767_225_600.25)
    trace.emit(
        t.SESSION_CLOSED, path="orders", to_listener_bytes=7, seconds=0.25, clean=True, code=None, why="peer left"
    )
    assert lines.read() == [
        "2026-01-01T00:00:00.250Z INFO    session.closed path=orders to_listener_bytes=7 seconds=0.25 clean=true code=-"
        ' why="peer left"'
    ]


def test_the_json_form_is_one_object_per_line(lines):
    lines.configure(format="json")
    trace = Trace(clock=lambda: 1_767_225_600.25)
    trace.emit(t.SESSION_CLOSED, path="ordërs", to_listener_bytes=7, clean=True, code=None, level_="x", message="m")
    (line,) = lines.read()
    assert json.loads(line) == {
        "time": "2026-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "relaycore.session",
        "event": "session.closed",
        "path": "ordërs",
        "to_listener_bytes": 7,
        "clean": True,
        "code": None,
        "level_": "x",
        "message_": "m",
    }


@pytest.mark.parametrize("form", ["human", "json"])
def test_a_peer_cannot_write_a_line_of_its_own(lines, form):
    lines.configure(format=form)
    Trace().emit(t.CONNECTION_REFUSED, path='a\r\n2026 INFO server.started x="1"\x1b[2J\u2028z')
    logging.getLogger("relaycore.gateway").warning("a\nb")
    written = lines.read()
    assert len(written) == 2
    assert all(line.isprintable() for line in written)


def test_a_field_that_looks_like_another_stands_in_quotes():
    assert str(emit_one(path="a b=c", empty="")) == 'connection.refused path="a b=c" empty=""'


@pytest.mark.parametrize("form", ["human", "json"])
def test_an_error_brings_its_traceback(lines, form):
    lines.configure(format=form)
    try:
        raise ValueError(f"bad SharedAccessKey={KEY}")
    except ValueError as error:
        Trace().emit(t.INTERNAL_ERROR, exc_info=error, tracking_id="x_G0")
    text = "\n".join(lines.read())
    assert "ValueError: bad" in text
    assert "test_trace.py" in text
    assert KEY not in text


def test_the_level_decides(lines):
    lines.configure(level="warning")
    trace = Trace()
    trace.emit(t.SERVER_STARTED)
    trace.emit(t.TOKEN_REFUSED, rule="r")
    assert [line.split()[2] for line in lines.read()] == ["token.refused"]


def test_configuring_twice_writes_once(lines):
    lines.configure()
    lines.configure()
    Trace().emit(t.SERVER_STARTED)
    assert len(lines.read()) == 1


def test_a_record_that_cannot_be_formatted_is_reported(lines):
    lines.configure()
    (handler,) = (handler for handler in logging.getLogger().handlers if "Queue" in type(handler).__name__)
    handler.handle(logging.LogRecord("relaycore.gateway", logging.INFO, "f.py", 1, "%d listeners", ("many",), None))
    (line,) = lines.read()
    assert "could not be formatted" in line


def test_a_library_user_who_configures_nothing_sees_nothing(capsys):
    Trace().emit(t.INTERNAL_ERROR)
    assert capsys.readouterr().err == ""


# Secrets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (TOKEN, "gy6PowuBl62F"),
        (f"Endpoint=sb://h/;SharedAccessKeyName=r;SharedAccessKey={KEY};EntityPath=e", KEY[:20]),
        (
            f"GET /$hc/e?sb-hc-action=listen&sb-hc-token={TOKEN.replace(' ', '%20').replace('&', '%26')} HTTP/1.1",
            "gy6Pow",
        ),
        (f"x{TOKEN.replace('&', '%26').replace('=', '%3D')}", "gy6PowuBl62F"),
        (f"the key is {KEY}", KEY[:20]),
        (f"the key is {KEY.replace('=', '%3D')}", KEY[:20]),
        (f"Authorization: Bearer {JWT}", "c2lnbmF0dXJl"),
        (RENDEZVOUS, "Zx9-secret"),
        (f"sharedaccesskey={KEY}", KEY[:20]),
        (f"{{'SIG=abcdefgh'}} {SIGNATURE}", "abcdefgh"),
    ],
)
def test_the_guard_takes_secrets_out(text, secret):
    assert secret in text
    assert secret not in redact(text)
    assert "[removed]" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "Endpoint does not exist: hyco. TrackingId:0f3c2b1a-1111-2222-3333-444455556666_G0",
        "SharedAccessKeyName=RootManageSharedAccessKey",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "config=design",
        "Sec-WebSocket-Key: lCViUC1BLboCnPkkJygLwQ==",
        "rule=defaultListener rights=Listen expiry=1767225600",
    ],
)
def test_the_guard_leaves_the_rest_alone(text):
    assert redact(text) == text


@pytest.mark.parametrize("form", ["human", "json"])
@pytest.mark.parametrize("secret", [TOKEN, f"SharedAccessKey={KEY}", KEY, SIGNATURE, JWT, RENDEZVOUS])
def test_no_token_or_key_reaches_the_log(lines, form, secret):
    lines.configure(level="debug", format=form)
    trace = Trace()
    with trace.recorded() as events:
        trace.emit(t.CONNECTION_REFUSED, path=secret, reason=RefusalReason.INVALID_SIGNATURE)
        logging.getLogger("relaycore.client").debug("> %s", secret)
        logging.getLogger("relaycore.client").debug(secret.replace("%", "%%"))
    written = "\n".join(lines.read()) + str(events[0])
    for part in (KEY, SIGNATURE, "gy6PowuBl62F", JWT, "Zx9-secret"):
        assert part not in written
    for line in written.splitlines()[:1] if form == "json" else []:
        json.loads(line)


def test_an_object_is_never_shown_by_its_repr():
    class Rule:
        def __repr__(self) -> str:
            return f"Rule({KEY!r})"

    assert emit_one(rule=Rule(), data=b"secret").fields == {"rule": "<Rule>", "data": "<bytes>"}


# The writer ----------------------------------------------------------------------------------------------------------


def test_a_reader_that_stalls_costs_lines_and_never_time(lines):
    """failures: a slow reader must not hold up or grow the process."""
    written: list[str] = []
    stalled, go_on = threading.Event(), threading.Event()

    def write(line: str) -> None:
        stalled.set()
        assert go_on.wait(10)
        written.append(line)

    writer = LogWriter(write, queue_lines=3, format_dropped=lambda count: f"{count} lost")
    writer.put_nowait("first")
    assert stalled.wait(10)
    for number in range(10):
        writer.put_nowait(f"line {number}")
    assert writer.dropped == 7
    go_on.set()
    writer.close(timeout=10)
    assert written == ["first\n", "7 lost\n", "line 0\nline 1\nline 2\n"]


def test_a_crowd_of_lines_leaves_in_pieces_of_whole_lines():
    written: list[str] = []
    stalled, go_on = threading.Event(), threading.Event()

    def write(text: str) -> None:
        stalled.set()
        assert go_on.wait(10)
        written.append(text)

    writer = LogWriter(write, queue_lines=1_000)
    writer.put_nowait("first")
    assert stalled.wait(10)
    lines = [*(f"{number} " + "x" * 90 for number in range(100)), "y" * 5_000, "z"]
    for line in lines:
        writer.put_nowait(line)
    go_on.set()
    writer.close(timeout=10)
    assert "".join(written) == "".join(f"{line}\n" for line in ["first", *lines])
    assert all(len(text) <= 4_096 or text.count("\n") == 1 for text in written)
    assert len(written) < 10


def test_lines_that_come_one_by_one_all_arrive():
    written: list[str] = []
    came = threading.Event()

    def write(text: str) -> None:
        written.append(text)
        came.set()

    writer = LogWriter(write, queue_lines=10)
    for number in range(20):
        came.clear()
        writer.put_nowait(str(number))
        assert came.wait(10)
    writer.close(timeout=10)
    assert written == [f"{number}\n" for number in range(20)]


def test_lost_lines_are_told_in_the_chosen_form(lines):
    stalled, go_on = threading.Event(), threading.Event()
    written: list[str] = []

    def write(line: str) -> None:
        stalled.set()
        assert go_on.wait(10)
        written.append(line)

    lines.configure()  # put back at the end
    writer = configure_logging(LogConfig(format="json", queue_lines=1), write=write)
    writer.put_nowait("{}")
    assert stalled.wait(10)
    writer.put_nowait("{}")
    Trace().emit(t.SERVER_STARTED)
    go_on.set()
    writer.close(timeout=10)
    assert "1 log lines were dropped" in json.loads(written[1])["message"]


def test_closing_does_not_wait_for_ever_for_a_stalled_reader():
    stalled, go_on = threading.Event(), threading.Event()

    def write(line: str) -> None:
        stalled.set()
        go_on.wait(10)

    writer = LogWriter(write, queue_lines=1)
    writer.put_nowait("taken")
    assert stalled.wait(10)
    writer.put_nowait("waiting")
    writer.close(timeout=0.01)
    writer.close(timeout=0.01)
    go_on.set()


def test_a_reader_that_is_gone_ends_nothing():
    def write(line: str) -> None:
        raise BrokenPipeError

    writer = LogWriter(write, queue_lines=10)
    writer.put_nowait("x")
    writer.put_nowait("y")
    writer.close()
    assert writer.dropped >= 2


def test_lines_go_to_standard_error_by_default(capfd):
    writer = configure_logging(LogConfig())
    try:
        Trace().emit(t.SERVER_STARTED, port=1)
    finally:
        writer.close()
        root = logging.getLogger()
        root.handlers[:] = [handler for handler in root.handlers if "Queue" not in type(handler).__name__]
        logging.getLogger("relaycore").setLevel(logging.NOTSET)
    assert "server.started port=1\n" in capfd.readouterr().err
