"""The progress line on terminals and in log files."""

import io
import os
import re
import shutil
import time

import pytest

from pomcp_jax.running import progress
from pomcp_jax.running.progress import Progress

STATE = "training 12,000/25,000 decisions | 103 decisions/s | return 432.1 | eval 510.2 | 2:05 left"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def shown(monkeypatch, width, text=STATE, encoding="utf-8", **kwargs):
    size = os.terminal_size((width, 24))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: size)
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    stream.encoding = encoding
    Progress(stream).line(text, **kwargs)
    line = stream.getvalue().removeprefix("\r\x1b[2K")
    assert len(line) < width and "\x1b" not in line  # it must not wrap
    return line


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (130, f"━━━━━━━━━╸──────────  48% {STATE}"),
        (80, "━━━━━━━╸────────  48% training 12,000/25,000 decisions | eval 510.2 | 2:05 left"),
        (61, "━━━━╸─────  48% training 12,000/25,000 decisions | 2:05 left"),
        (30, "training 12,000/25,000 decisi"),
    ],
)
def test_a_terminal_shows_a_bar_and_what_fits(monkeypatch, width, line):
    assert shown(monkeypatch, width, share=0.48).startswith(line)


def test_only_the_end_is_100_percent(monkeypatch):
    assert " 99% " in shown(monkeypatch, 130, share=0.9999)
    assert shown(monkeypatch, 130, share=1.0).startswith("━" * 20 + " 100% ")
    assert shown(monkeypatch, 130, share=0.0).startswith("─" * 20 + "   0% ")


def test_other_encodings_get_plain_letters(monkeypatch):
    assert shown(monkeypatch, 130, encoding="ascii", share=0.5).startswith("=" * 10 + "-" * 10)


def test_work_of_unknown_length_has_no_bar(monkeypatch):
    assert shown(monkeypatch, 130, "compiling (0:05)") == "compiling (0:05)"


def test_a_log_file_has_whole_lines_without_a_bar():
    stream = io.StringIO()
    log = Progress(stream, interval=1000.0)
    log.line(STATE, share=0.5)
    log.line("later", share=0.6)  # within the interval
    log.line("end", share=1.0, force=True)
    log.say("warning: x")
    log.close()
    assert stream.getvalue() == f"{STATE}\nend\nwarning: x\n"


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    stream = Terminal()
    Progress(stream).line(STATE, share=0.5)
    assert "\x1b[32m━" in stream.getvalue()
    assert "\x1b[" not in progress.bar(0.5, 20)


def test_a_long_call_is_seen_to_go_on():
    """A line at once, one with the time in between, none after the end."""
    stream = Terminal()
    with progress.waiting("playing", Progress(stream)):
        time.sleep(1.2)
    text = stream.getvalue()
    assert re.match(r"\r\x1b\[2Kplaying\r\x1b\[2Kplaying \(0:0\d\)", text) and text.endswith("\n")
    time.sleep(0.6)
    assert stream.getvalue() == text
    log = io.StringIO()
    with (
        pytest.raises(ZeroDivisionError),
        progress.waiting("playing", Progress(log, interval=1000.0)),
    ):
        _ = 1 / 0
    assert log.getvalue() == "playing\n"
