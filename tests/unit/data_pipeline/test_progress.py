"""Progress never changes what is yielded, and reports in the way that stderr can show."""

from __future__ import annotations

import logging
import sys

import pytest

from data_pipeline.progress import track


def test_without_a_terminal_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert list(track("abc", 3, "reading")) == ["a", "b", "c"]
    assert [record.getMessage()[:15] for record in caplog.records] == ["reading: 3 of 3"]


def test_on_a_terminal_there_is_a_bar_on_stderr(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with caplog.at_level(logging.INFO):
        assert list(track("abc", 3, "reading")) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert "reading" in captured.err
    assert not captured.out
    assert not caplog.records
