"""The data commands and what training makes of their shards, as a user meets them.

Real processes, real files, and shards from a real HTTP server on the loopback.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hyperadapter.core.events import read_metric
from hyperadapter.core.files import read_json, write_json
from tests.tiny_corpus import bitext, write_tsv

pytestmark = pytest.mark.slow

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Row = dict[str, Any]

STEPS = 52  # four chunks
FEWER_STEPS = 40  # no schedule here looks at the last step: such a run is the beginning of another
DIRECTIONS = ("en-de", "de-en", "en-fr", "fr-en")
BEGIN = "0:32"
CACHE_BYTES = 70_000  # less than all shards, more than the largest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the files of all tests here."""
    return tmp_path_factory.mktemp("data_commands")


def sets(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def assert_ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def plan(corpus: Path, hyperadapter: Command) -> Callable[..., list[Row]]:
    """The lines of `data plan` of the corpus with `key=value` changes."""

    def call(*changes: str, steps: str = BEGIN, world_size: int = 1) -> list[Row]:
        done = hyperadapter(
            "data", "plan", "--config", str(corpus / "run.yaml"), *sets(*changes),
            "--steps", steps, "--world-size", str(world_size), "--json",
        )  # fmt: skip
        return [json.loads(line) for line in assert_ok(done).stdout.splitlines()]

    return call


@pytest.fixture(scope="module")
def planned(plan: Callable[..., list[Row]]) -> list[Row]:
    """The plan of the corpus as it is."""
    return plan()


def column(rows: list[Row], name: str) -> list[Any]:
    return [row[name] for row in rows]


def losses(run_dir: Path) -> dict[int, float]:
    return dict(read_metric(run_dir, "train/loss"))


class Started(NamedTuple):
    """A command at work.

    Attributes:
        process: To wait for.
        log: What it has said so far.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def says(self) -> str:
        """Returns stdout and stderr."""
        return self.log.read_text(encoding="utf-8")


@contextmanager
def start(log: Path, *arguments: str) -> Iterator[Started]:
    """Starts the command; afterwards it is at work no longer."""
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [sys.executable, "-m", "hyperadapter", *arguments],
            stdout=stream,
            stderr=stream,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        try:
            yield Started(process, log)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def tracked(corpus: Path, folder: Path) -> Iterator[Started]:
    """A run over shards of which one is cut off, with MLflow on SQLite."""
    shards = Path(shutil.copytree(corpus / "data" / "shards", folder / "cut"))
    bad = shards / "train" / "en-fr-00000.tar"
    os.truncate(bad, bad.stat().st_size // 2)
    changes = sets(
        f"run_dir={folder / 'tracked'}", f"data.shards_folder={shards}", "tracking.enabled=true",
        "data.stream.max_lost_fraction=0.9", "training.max_steps=5",
    )  # fmt: skip
    arguments = ("train", "--config", str(corpus / "run.yaml"), *changes)
    with start(folder / "tracked.log", *arguments) as started:
        yield started


@pytest.fixture(scope="module")
def reference(corpus: Path, hyperadapter: Command, folder: Path, tracked: Started) -> Path:
    """A run by one process, whose batches a thread prepares, over local shards."""
    del tracked  # which works meanwhile
    run_dir = folder / "reference"
    changes = sets(f"run_dir={run_dir}", f"training.max_steps={STEPS}")
    assert_ok(hyperadapter("train", "--config", str(corpus / "run.yaml"), *changes))
    assert list(losses(run_dir)) == list(range(1, STEPS + 1))
    return run_dir


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serves a folder on the loopback; afterwards nobody listens there."""
    handler = functools.partial(QuietHandler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Remote(NamedTuple):
    """Training over HTTP.

    Attributes:
        config: A configuration without sources, whose data folder has the tokenizer only.
        url: Where the shards were served.
        cached: Bytes of each shard in the cache after the run, while it was bounded.
        lost: A later run of the same after the server has gone.
    """

    config: Path
    url: str
    cached: list[int]
    lost: Started


@pytest.fixture(scope="module")
def remote(corpus: Path, hyperadapter: Command, folder: Path) -> Iterator[Remote]:
    """Adopts shards of a server, trains on them, and starts once more when the server is gone."""
    tree = read_json(corpus / "run.yaml")
    del tree["data"]["sources"]
    tree["run_dir"] = str(folder / "remote")
    tree["training"] |= {"max_steps": FEWER_STEPS, "num_processes": 2}
    tree["data"] |= {
        "folder": str(folder / "lean"),
        "shards_folder": str(folder / "adopted"),
        "stream": {"cache_folder": str(folder / "cache"), "cache_bytes": CACHE_BYTES},
    }
    tree["data"]["tokenizer"]["folder"] = str(corpus / "data" / "tokenizer")
    config = folder / "lean.yaml"
    write_json(config, tree)
    with serve(corpus / "data") as url:
        assert_ok(hyperadapter("data", "merge", str(folder / "adopted"), f"{url}/shards"))
        assert_ok(hyperadapter("data", "tokenizer", "--config", str(config)))
        assert_ok(hyperadapter("train", "--config", str(config)))
    cached = [path.stat().st_size for path in (folder / "cache").glob("*.tar")]
    shutil.rmtree(folder / "cache")
    changes = sets(
        f"run_dir={folder / 'lost'}", 'data.directions=["en-fr", "fr-en"]',
        "training.num_processes=1",
    )  # fmt: skip
    with start(folder / "lost.log", "train", "--config", str(config), *changes) as lost:
        yield Remote(config, url, cached, lost)


def beginning(values: dict[int, float], steps: int) -> dict[int, float]:
    return {step: value for step, value in values.items() if step <= steps}


def test_a_run_without_sources_trains_on_shards_of_a_server(
    remote: Remote, reference: Path, folder: Path
) -> None:
    assert not (folder / "lean" / "clean").exists()
    assert not list((folder / "adopted").glob("**/*.tar"))
    expected = beginning(losses(reference), FEWER_STEPS)
    assert losses(folder / "remote") == pytest.approx(expected, rel=2e-5)


def test_the_cache_of_a_server_s_shards_keeps_its_limit(remote: Remote, corpus: Path) -> None:
    shards = list((corpus / "data" / "shards").glob("*/*.tar"))
    assert sum(path.stat().st_size for path in shards) > CACHE_BYTES
    assert 0 < sum(remote.cached) <= CACHE_BYTES


def test_the_plan_does_not_depend_on_who_reads_it(
    plan: Callable[..., list[Row]], planned: list[Row]
) -> None:
    assert all({"step", "hash", "target_tokens", "tokens"} <= row.keys() for row in planned)
    assert column(planned, "step") == list(range(32))
    assert len(set(column(planned, "hash"))) == 32
    for row in planned:
        assert tuple(row["tokens"]) == DIRECTIONS
        assert sum(row["tokens"].values()) == row["target_tokens"]
    assert plan(world_size=2) == planned
    assert plan("data.stream.workers=2", world_size=4) == planned
    assert plan(steps="30:32") == planned[30:]


def test_a_far_step_takes_no_longer_than_the_first(plan: Callable[..., list[Row]]) -> None:
    began = time.monotonic()
    first = plan(steps="0:2")
    near = time.monotonic()
    far = plan(steps="1000000:1000002")
    # Going there step by step would take an hour.
    assert time.monotonic() - near < 3 * (near - began) + 20
    assert column(far, "step") == [1_000_000, 1_000_001]
    assert {row["hash"] for row in far}.isdisjoint(row["hash"] for row in first)


@pytest.mark.parametrize("world_size", [3, 8])
def test_a_world_that_cannot_share_a_step_is_told_which_can(
    world_size: int, corpus: Path, hyperadapter: Command
) -> None:
    done = hyperadapter(
        "data", "plan", "--config", str(corpus / "run.yaml"), "--world-size", str(world_size)
    )
    assert done.returncode == 3
    assert f"{world_size} processes cannot share the 4 micro-batches" in done.stderr
    assert "use 1 or 2 or 4 processes" in done.stderr
    assert done.stdout == ""


def test_a_seed_changes_all_steps_and_a_phase_those_after_it(
    corpus: Path, hyperadapter: Command, plan: Callable[..., list[Row]], planned: list[Row]
) -> None:
    seeded = plan("training.seed=2", steps="0:4")
    assert not {row["hash"] for row in seeded} & {row["hash"] for row in planned}

    shown = hyperadapter("data", "plan", "--config", str(corpus / "run.yaml"), "--steps", "0:1")
    (chunk,) = re.findall(r"(\d+) steps a chunk", assert_ok(shown).stderr)
    begin = 2 * int(chunk)
    assert begin < len(planned), "plan more steps"
    weights = {"kind": "explicit", "weights": {"en-de": 3, "fr-en": 1}}
    phases = json.dumps([{"from_step": begin, "mixing": weights}])
    changed = plan(f"data.stream.phases={phases}")
    assert changed[:begin] == planned[:begin]
    for row, before in zip(changed[begin:], planned[begin:], strict=True):
        assert row["hash"] != before["hash"]
        assert row["tokens"]["de-en"] == row["tokens"]["en-fr"] == 0


def test_verify_names_every_bad_file(corpus: Path, hyperadapter: Command, folder: Path) -> None:
    shards = Path(shutil.copytree(corpus / "data" / "shards", folder / "damaged"))
    done = assert_ok(hyperadapter("data", "verify", str(shards)))
    assert "0 bad files; 4 shards" in done.stdout

    flipped, short, gone, lengths = (
        shards / name
        for name in ("train/en-de-00000.tar", "train/en-fr-00000.tar", "valid/en-de-00000.tar",
                     "valid/lengths/en-fr.u16")
    )  # fmt: skip
    for path in (flipped, lengths):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    os.truncate(short, short.stat().st_size // 2)
    gone.unlink()

    done = hyperadapter("data", "verify", str(shards))
    assert done.returncode == 1
    found = dict(re.findall(r"^BAD (\S+): (.*)$", done.stdout, re.MULTILINE))
    assert found.keys() == {str(path) for path in (flipped, short, gone, lengths)}
    assert found[str(gone)] == "is missing"
    assert found[str(short)].endswith("but its manifest promises 30720")
    assert "4 bad files" in done.stdout
    done = hyperadapter("data", "verify", str(shards), "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert {item["path"]: item["reason"] for item in report["bad"]} == found


def test_parts_merged_again_are_the_whole(
    corpus: Path, hyperadapter: Command, folder: Path, plan: Callable[..., list[Row]],
    planned: list[Row],
) -> None:  # fmt: skip
    shards, parts = corpus / "data" / "shards", folder / "parts"
    assert_ok(hyperadapter("data", "split", str(shards), str(parts), "--parts", "2"))
    names = [str(parts / f"part-{number:02d}") for number in range(2)]
    for out, order in (("merged", names), ("turned", names[::-1])):
        assert_ok(hyperadapter("data", "merge", str(folder / out), *order))
        assert not list((folder / out).glob("**/*.tar"))
    assert plan(f"data.shards_folder={folder / 'merged'}") == planned
    # A hash has the numbers of blocks, and with them the order of the pairs, in it.
    turned = plan(f"data.shards_folder={folder / 'turned'}")
    assert column(turned, "tokens") == column(planned, "tokens")
    done = assert_ok(hyperadapter("data", "verify", str(folder / "merged")))
    assert "0 bad files" in done.stdout

    done = hyperadapter("data", "merge", str(folder / "merged"), *names)
    assert done.returncode == 3
    assert "merged exists already; name a new folder, or remove it" in done.stderr


def test_some_pairs_split_off_are_planned_as_within_the_whole(
    corpus: Path, hyperadapter: Command, folder: Path, plan: Callable[..., list[Row]]
) -> None:
    shards, out = corpus / "data" / "shards", folder / "french"
    assert_ok(hyperadapter("data", "split", str(shards), str(out), "--pairs", "fr-en"))
    directions = 'data.directions=["en-fr", "fr-en"]'
    whole, split = plan(directions), plan(directions, f"data.shards_folder={out}")
    assert column(split, "tokens") == column(whole, "tokens")


def test_a_language_is_added_without_touching_the_others(
    corpus: Path, hyperadapter: Command, folder: Path
) -> None:
    data = Path(shutil.copytree(corpus / "data", folder / "grown"))
    tree = read_json(corpus / "run.yaml")
    source = write_tsv(folder / "en-es.tsv", bitext("fr", 150, 2))
    tree["data"]["sources"].append(source | {"name": "es", "languages": ["en", "es"]})
    tree["data"]["languages"].append("es")
    tree["data"]["folder"] = str(data)
    tree["data"]["tokenizer"]["folder"] = str(data / "tokenizer")
    config = folder / "grown.yaml"
    write_json(config, tree)

    def files() -> dict[str, tuple[int, int, bytes]]:
        found = [path for path in data.glob("shards/*/*.tar")] + [data / "tokenizer" / "spm.model"]
        return {
            str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
            for path in found
        }

    before = files()
    for step in ("clean", "tokenizer", "shard"):
        assert_ok(hyperadapter("data", step, "--config", str(config)))
    after = files()
    assert {name: after[name] for name in before} == before
    added = sorted(Path(name).name for name in after.keys() - before.keys())
    assert added == ["en-es-00000.tar", "en-es-00000.tar"]
    done = hyperadapter("data", "plan", "--config", str(config), "--steps", "0:1", "--json")
    assert min(json.loads(assert_ok(done).stdout)["tokens"].values()) > 0


def data_workers(process: int) -> list[int]:
    """Returns the loader processes of a training process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            spawned = b"--multiprocessing-fork" in (folder / "cmdline").read_bytes()
        except (OSError, ProcessLookupError):
            continue
        if parent == process and spawned:
            found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], bool], started: Started) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert started.process.poll() is None, started.says()[-3000:]
        assert time.monotonic() < deadline, started.says()[-3000:]
        time.sleep(0.02)


def test_loader_processes_change_nothing_even_when_killed_or_stopped(
    corpus: Path, hyperadapter: Command, folder: Path, reference: Path
) -> None:
    run_dir = folder / "workers"
    events = run_dir / "events.jsonl"
    arguments = [
        "train", "--config", str(corpus / "run.yaml"), "--set", "data.stream.workers=2",
        *sets(f"run_dir={run_dir}", f"training.max_steps={FEWER_STEPS}"),
    ]  # fmt: skip
    with start(folder / "workers.log", *arguments) as started:
        process = started.process
        wait_for(lambda: events.exists() and len(losses(run_dir)) >= 2, started)
        os.kill(data_workers(process.pid)[0], signal.SIGKILL)
        wait_for(lambda: "starting it again at step" in started.says(), started)
        wait_for(lambda: len(losses(run_dir)) >= 16, started)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 75, started.says()[-3000:]
    assert "died with exit code -9" in started.says()
    assert 16 <= len(losses(run_dir)) < FEWER_STEPS

    assert_ok(hyperadapter(*arguments))
    assert losses(run_dir) == beginning(losses(reference), FEWER_STEPS)
    errors = [dict(read_metric(path, "data/mixture_error")) for path in (run_dir, reference)]
    assert errors[0] == beginning(errors[1], FEWER_STEPS)


def test_the_mixture_is_on_record_and_as_planned(reference: Path) -> None:
    def last(kind: str) -> dict[str, float]:
        found = {name: read_metric(reference, f"data/{kind}/{name}") for name in DIRECTIONS}
        assert all(values[-1][0] == STEPS for values in found.values())
        return {name: values[-1][1] for name, values in found.items()}

    share, planned_share, passes = (last(kind) for kind in ("share", "planned_share", "passes"))
    assert sum(share.values()) == pytest.approx(1)
    assert sum(planned_share.values()) == pytest.approx(1)
    # Less text is passed over more often, though temperature gives it the smaller share.
    assert passes["en-fr"] > passes["en-de"] > 1
    assert share["en-fr"] < share["en-de"]
    errors = dict(read_metric(reference, "data/mixture_error"))
    assert errors.keys() == losses(reference).keys()
    differences = sum(abs(share[name] - planned_share[name]) for name in DIRECTIONS)
    assert errors[STEPS] == pytest.approx(differences / 2)
    assert errors[STEPS] < 0.02


def test_lost_blocks_reach_mlflow(tracked: Started, folder: Path) -> None:
    from mlflow import MlflowClient

    assert tracked.process.wait(120) == 0, tracked.says()[-3000:]
    bad = folder / "cut" / "train" / "en-fr-00000.tar"
    assert "blocks are left out" in tracked.says()
    assert str(bad) in tracked.says()

    record = read_json(folder / "tracked" / "quarantine.json")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'hyperadapter'")
    (run,) = client.search_runs([experiment.experiment_id])
    metrics = run.data.metrics
    assert metrics["data/lost_blocks"] == len(record["blocks"]) > 0
    assert metrics["data/lost_sentence_pairs"] > 0
    assert 0 < metrics["data/lost_fraction"] < 0.9
    for name in ("mixture_error", "share/en-de", "planned_share/en-fr", "passes/fr-en"):
        assert f"data/{name}" in metrics
    path = client.download_artifacts(run.info.run_id, "data/quarantine.json", str(folder))
    assert read_json(Path(path)) == record


def test_a_server_that_is_gone_ends_the_run_with_a_reason(remote: Remote, folder: Path) -> None:
    assert remote.lost.process.wait(120) == 1
    said = remote.lost.says()
    shard = f"{remote.url}/shards/train/en-fr-00000.tar"
    assert f"{shard}: cannot be downloaded: ClientConnectorError" in said
    assert "(100.00%) are lost, more than data.stream.max_lost_fraction" in said
    assert not losses(folder / "lost")


def test_a_shard_that_is_gone_is_named_once(remote: Remote) -> None:
    remote.lost.process.wait(120)
    shard = f"{remote.url}/shards/train/en-fr-00000.tar"
    told = [line for line in remote.lost.says().splitlines() if "blocks are left out" in line]
    assert len([line for line in told if shard in line]) == 1


def test_when_the_server_is_back_nothing_stands_in_the_way(remote: Remote, folder: Path) -> None:
    remote.lost.process.wait(120)
    assert "restore them (or their server)" in remote.lost.says().rpartition("\nerror: ")[2]
    assert not (folder / "lost" / "quarantine.json").exists()


def test_without_a_tokenizer_adopted_shards_tell_which_key_to_set(
    remote: Remote, hyperadapter: Command, folder: Path
) -> None:
    changes = sets(f"data.folder={folder / 'bare'}", 'data.tokenizer.folder=""')
    done = hyperadapter("data", "tokenizer", "--config", str(remote.config), *changes)
    assert done.returncode != 0
    assert "Set data.tokenizer.folder to the tokenizer" in done.stderr
