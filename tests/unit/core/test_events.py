"""The event file survives crashes, and readers see whole events only."""

from __future__ import annotations

import math
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperadapter.core import events
from hyperadapter.core.errors import DataError, DiskFullError
from hyperadapter.core.events import (
    EVENTS_FILE,
    STATE_FILE,
    EventWriter,
    SendState,
    count_events,
    newest_event,
    newest_metric,
    read_events,
    read_metric,
)

NUMBERS = st.dictionaries(st.text(min_size=1), st.floats(), min_size=1, max_size=3)


@given(st.lists(NUMBERS, max_size=4))
def test_metrics_come_back(tmp_path: Path, steps: list[dict[str, float]]) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    writer = EventWriter(tmp_path / "run")
    for step, metrics in enumerate(steps):
        writer.write_metrics(metrics, step)
    writer.close()
    found_events = list(read_events(tmp_path / "run"))
    assert [event.value["step"] for event in found_events] == list(range(len(steps)))
    for event, metrics in zip(found_events, steps, strict=True):
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
    # Only the end of the line is missing: the event is whole.
    survivors += whole[cut : cut + 1] == b"\n"

    writer = EventWriter(tmp_path / "run")
    writer.write_metrics({"a": 9}, 9)
    writer.close()
    found = [event.value["step"] for event in read_events(tmp_path / "run") if event.value]
    assert found == [*range(survivors), 9]
    assert [step for step, _ in read_metric(tmp_path / "run", "a")] == found


class TightDisk:
    """A file on a disk with room for so many bytes."""

    def __init__(self, path: Path, room: int) -> None:
        self.path = path
        self.room = room
        self.closed = False

    def write(self, data: memoryview) -> int:
        taken = min(len(data), self.room)
        if not taken:
            raise OSError(28, "No space left on device")
        with open(self.path, "ab") as stream:
            stream.write(data[:taken])
        self.room -= taken
        return taken

    def close(self) -> None:
        self.closed = True


@given(st.integers(0, 120), st.integers(0, 2))
def test_what_a_full_disk_cuts_is_lost_alone(tmp_path: Path, room: int, failures: int) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    writer = EventWriter(tmp_path / "run")
    writer.close()
    disk = TightDisk(tmp_path / "run" / EVENTS_FILE, room)
    writer._stream = disk  # type: ignore[assignment]
    written = []
    for step in range(6):
        if step == 3 + failures:
            disk.room = 10_000
        with suppress(DiskFullError):
            writer.write_metrics({"a": 1.0}, step)
            written.append(step)
    values = [event.value for event in read_events(tmp_path / "run")]
    found = [value["step"] for value in values if value]
    # An event of which only the end of its line was cut is there, though its write failed.
    assert set(written) <= set(found)
    assert found == sorted(set(found))
    assert len(values) - len(found) <= 1


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
    found = list(read_events(tmp_path))
    assert len(found) == 400
    assert all(event.value for event in found)


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


def test_a_damaged_state_is_an_error_that_names_it(tmp_path: Path) -> None:
    for text in ('{"colour": "blue"}', "[1]"):
        (tmp_path / STATE_FILE).write_text(text)
        with pytest.raises(DataError, match=r"tracking.json is not what was written"):
            SendState.load(tmp_path)


STATUSES = st.lists(st.sampled_from(["RUNNING", "KILLED", None]), max_size=6)


@given(STATUSES, st.integers(1, 40), st.booleans())
def test_the_newest_event_is_found_from_the_end(
    tmp_path: Path, statuses: list[str | None], block_bytes: int, torn: bool
) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    writer = EventWriter(tmp_path / "run")
    for step, status in enumerate(statuses):
        if status is None:
            writer.write_metrics({"status": 1.0}, step)  # a name, not a status
        else:
            writer.write(status=status, number=step)
    writer.close()
    if torn:
        with open(tmp_path / "run" / EVENTS_FILE, "ab") as stream:
            stream.write(b'{"status": "FINISHED", "numb')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "_BLOCK_BYTES", block_bytes)
        found = newest_event(tmp_path / "run", "status")
        count = count_events(tmp_path / "run")
    numbers = [step for step, status in enumerate(statuses) if status]
    assert found.get("number") == (numbers[-1] if numbers else None)
    assert count == len(statuses)


def test_lines_are_counted_from_an_offset(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    for step in range(4):
        writer.write_metrics({"a": step}, step)
    writer.close()
    ends = [event.end for event in read_events(tmp_path)]
    assert [count_events(tmp_path, end) for end in (0, *ends)] == [4, 3, 2, 1, 0]


def test_a_metric_is_not_mistaken_for_another_one(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.write(params={"a": "1"})
    writer.write_metrics({"a": 1.0, "b/a": 2.0, 'é"': math.nan}, 1)
    writer.write_metrics({"b/a": 3.0}, 2)
    writer.write_metrics({"a": 4.0}, 1)  # again, after a resume
    writer.close()
    assert read_metric(tmp_path, "a") == [(1, 4.0)]
    assert read_metric(tmp_path, "b/a") == [(1, 2.0), (2, 3.0)]
    ((step, value),) = read_metric(tmp_path, 'é"')
    assert step == 1
    assert math.isnan(value)
    assert read_metric(tmp_path, "none") == []


def test_the_newest_value_of_a_metric_is_found_behind_other_events(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.write_metrics({"loss": 3.0, "other": 1.0}, 10)
    writer.write_metrics({"loss": math.nan}, 20)
    writer.write_metrics({"other": 2.0, "not loss": 5.0}, 30)
    writer.write(status="FINISHED", reason="loss")
    writer.close()
    step, value = newest_metric(tmp_path, "loss") or (0, 0.0)
    assert step == 20
    assert math.isnan(value)
    assert newest_metric(tmp_path, "other") == (30, 2.0)
    assert newest_metric(tmp_path, "los") is None
