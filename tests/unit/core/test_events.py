"""The event file survives crashes, and readers see whole events only."""

from __future__ import annotations

import json
import math
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperadapter.core.events import EVENTS_FILE, STATE_FILE, EventWriter, SendState, read_events

NUMBERS = st.dictionaries(st.text(min_size=1), st.floats(), min_size=1, max_size=3)


@given(st.lists(NUMBERS, max_size=4))
def test_metrics_come_back(tmp_path: Path, steps: list[dict[str, float]]) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    writer = EventWriter(tmp_path / "run")
    for step, metrics in enumerate(steps):
        writer.write_metrics(metrics, step)
    writer.close()
    events = list(read_events(tmp_path / "run"))
    assert [event.value["step"] for event in events] == list(range(len(steps)))
    for event, metrics in zip(events, steps, strict=True):
        found = {key: float(value) for key, value in event.value["metrics"].items()}
        assert found.keys() == metrics.keys()
        for key, value in metrics.items():
            assert found[key] == value or (math.isnan(found[key]) and math.isnan(value))


@given(st.integers(0, 200))
def test_a_crash_anywhere_costs_the_last_event_at_most(tmp_path: Path, cut: int) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    writer = EventWriter(tmp_path / "run")
    for step in range(3):
        writer.write_metrics({"a": step}, step)
    writer.close()
    path = tmp_path / "run" / EVENTS_FILE
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    survivors = whole[:cut].count(b"\n")
    assert len(list(read_events(tmp_path / "run"))) == survivors

    writer = EventWriter(tmp_path / "run")
    writer.write_metrics({"a": 9}, 9)
    writer.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [*range(survivors), 9]


def test_reading_goes_on_where_it_ended(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.write(status="RUNNING")
    first = list(read_events(tmp_path))
    writer.write(status="FINISHED")
    writer.close()
    (second,) = read_events(tmp_path, first[-1].end)
    assert second.value["status"] == "FINISHED"
    assert second.end == (tmp_path / EVENTS_FILE).stat().st_size


def test_an_event_is_visible_at_once_and_half_of_one_never(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.write(status="RUNNING")
    with open(tmp_path / EVENTS_FILE, "ab") as stream:
        stream.write(b'{"half": ')
    assert len(list(read_events(tmp_path))) == 1
    writer.close()


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)

    def write(name: int) -> None:
        for step in range(100):
            writer.write_metrics({"x" * 500: name}, step)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    events = list(read_events(tmp_path))
    assert len(events) == 400
    assert all(event.value for event in events)


def test_the_time_of_an_event_is_in_milliseconds(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.write(status="RUNNING")
    writer.close()
    (event,) = read_events(tmp_path)
    written_s = (tmp_path / EVENTS_FILE).stat().st_mtime
    assert event.value["time_ms"] / 1000 == pytest.approx(written_s, abs=10)


def test_the_state_comes_back(tmp_path: Path) -> None:
    assert SendState.load(tmp_path) is None
    state = SendState("key", "name", "experiment", "uri", "run", 12)
    state.save(tmp_path)
    assert SendState.load(tmp_path) == state
    assert (tmp_path / STATE_FILE).exists()
