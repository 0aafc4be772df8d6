"""Relatedness of a run whose nl is a dialect of de: found in every view, and written whole."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hyperadapter.analysis import relatedness
from hyperadapter.analysis.distances import DistanceTable
from hyperadapter.analysis.relatedness import (
    Options,
    analyse_relatedness,
    load_run,
    measure_distances,
)
from hyperadapter.cli import cli
from hyperadapter.core.errors import CheckpointError, ConfigError, DataError
from hyperadapter.core.events import EVENTS_FILE

MakeRun = Callable[..., Path]
QUICK = Options(permutations=199)
ADAPTERS = ["encoder_cosine", "encoder_cka", "decoder_cosine", "decoder_cka"]


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes the names of pictures for pictures, whose drawing takes most of the time."""

    def write(table: DistanceTable, folder: Path) -> list[Path]:
        path = folder / f"{table.name}.png"
        path.write_text(table.name)
        return [path]

    monkeypatch.setattr(relatedness, "plot_relatedness", write)


@pytest.mark.parametrize(
    ("kind", "hyper", "names"),
    [
        ("hyper", {}, ["embedding_cosine", *ADAPTERS]),
        (
            "hyper",
            {"tied_language_embeddings": False},
            ["embedding_src_cosine", "embedding_tgt_cosine", *ADAPTERS],
        ),
        ("language", {}, ADAPTERS),
    ],
)
def test_dialects_are_nearest_relatives_in_every_view(
    dialect_run: MakeRun, kind: str, hyper: dict[str, Any], names: list[str]
) -> None:
    report = analyse_relatedness(dialect_run(kind, **hyper), QUICK)
    assert list(report["tables"]) == names
    for name, table in report["tables"].items():
        nearest = table["nearest"]
        assert (nearest["de"][0][0], nearest["nl"][0][0]) == ("nl", "de"), name
        others = [row[0][1] for code, row in nearest.items() if code not in ("de", "nl")]
        assert nearest["de"][0][1] < 0.05 * min(others), name
        order = table["tree_order"]
        assert abs(order.index("de") - order.index("nl")) == 1, name
        assert table["family"]["gap"] > 0


def test_every_file_is_written_and_told_to_the_tracker(dialect_run: MakeRun) -> None:
    run_dir = dialect_run("hyper")
    report = analyse_relatedness(run_dir, QUICK)
    folder = run_dir / "analysis" / "relatedness"
    assert json.loads((folder / "relatedness.json").read_text()) == json.loads(json.dumps(report))
    pictures = {f"{name}.png" for name in report["tables"]}
    assert {path.name for path in folder.glob("*.png")} == pictures
    events = [json.loads(line) for line in (run_dir / EVENTS_FILE).read_text().splitlines()]
    artifacts = {Path(e["artifact"]).name for e in events if e.get("folder")}
    assert artifacts == {*pictures, "relatedness.json", "distances.csv"}
    metrics = [event for event in events if "metrics" in event]
    [logged] = [event["metrics"] for event in metrics]
    table = report["tables"]["decoder_cka"]
    assert logged["analysis/relatedness/decoder_cka/family_gap"] == table["family"]["gap"]
    assert logged["analysis/relatedness/decoder_cka/family_p"] == table["family"]["p"]
    assert "analysis/relatedness/decoder_cka/given_r" not in logged
    assert not [event for event in events if event.get("status")]


def test_the_csv_holds_every_layer_and_their_mean(dialect_run: MakeRun) -> None:
    run_dir = dialect_run("language")
    analyse_relatedness(run_dir, QUICK)
    with (run_dir / "analysis" / "relatedness" / "distances.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    found = {
        row["layer"]: float(row["distance"])
        for row in rows
        if (row["view"], row["measure"]) == ("encoder", "cka")
        and (row["language_a"], row["language_b"]) == ("es", "fr")
    }
    assert list(found) == ["encoder.0", "encoder.1", "mean"]
    assert found["mean"] == pytest.approx((found["encoder.0"] + found["encoder.1"]) / 2)
    assert found["encoder.0"] != pytest.approx(found["encoder.1"])
    assert len(rows) == 10 * 2 * (3 + 1 + 1)
    families = {(row["language_a"], row["family_a"]) for row in rows}
    assert ("de", "germanic") in families


def test_given_distances_of_ones_own_correlate_wholly(dialect_run: MakeRun, tmp_path: Path) -> None:
    run_dir = dialect_run("hyper")
    _, loaded = load_run(run_dir, "newest")
    [table] = [t for t in measure_distances(loaded.model, "en") if t.name == "decoder_cosine"]
    rows = [",".join(["", *table.languages])]
    for code, distances in zip(table.languages, table.mean, strict=True):
        rows.append(",".join([code, *(repr(float(value)) for value in distances)]))
    path = tmp_path / "given.csv"
    path.write_text("\n".join(rows))
    report = analyse_relatedness(run_dir, QUICK, path)
    given = report["tables"]["decoder_cosine"]["given"]
    assert given["r"] == pytest.approx(1.0)
    assert given["p"] < 0.1
    # The pivot is in no file, and embeddings are compared without it.
    assert "en" not in report["tables"]["embedding_cosine"]["given"]["languages"]
    assert report["tables"]["embedding_cosine"]["given"]["r"] < 1


def test_the_same_seed_gives_the_same_files(dialect_run: MakeRun) -> None:
    run_dir = dialect_run("hyper")
    folder = run_dir / "analysis" / "relatedness"
    files = []
    for _ in range(2):
        analyse_relatedness(run_dir, QUICK)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]


def test_another_seed_gives_other_p_values_but_the_same_distances(dialect_run: MakeRun) -> None:
    run_dir = dialect_run("hyper")
    one, other = (
        analyse_relatedness(run_dir, QUICK._replace(seed=seed))["tables"] for seed in (1, 2)
    )
    assert [t["family"]["r"] for t in one.values()] == [t["family"]["r"] for t in other.values()]
    assert [t["family"]["p"] for t in one.values()] != [t["family"]["p"] for t in other.values()]


def test_families_that_share_adapters_are_not_apart(dialect_run: MakeRun) -> None:
    table = analyse_relatedness(dialect_run("family"), QUICK)["tables"]["decoder_cka"]
    assert table["nearest"]["de"][0] == ("nl", pytest.approx(0.0, abs=1e-9))
    assert table["nearest"]["es"][0][0] == "fr"
    assert table["family"]["r"] > 0.9


def test_the_mean_hides_no_layer(dialect_run: MakeRun) -> None:
    run_dir = dialect_run("hyper")
    layers = analyse_relatedness(run_dir, QUICK)["tables"]["encoder_cosine"]["layers"]
    assert list(layers) == ["encoder.0", "encoder.1"]
    gaps = [layer["family_gap"] for layer in layers.values()]
    report = analyse_relatedness(run_dir, QUICK)["tables"]["encoder_cosine"]
    assert report["family"]["gap"] == pytest.approx(np.mean(gaps))


def test_what_cannot_be_compared(dialect_run: MakeRun, tmp_path: Path) -> None:
    run_dir = dialect_run("none")
    with pytest.raises(ConfigError, match=r"adapter\.kind is 'none'"):
        analyse_relatedness(run_dir, QUICK)
    run_dir = dialect_run("language", languages=("en", "de", "uk"))
    with pytest.raises(ConfigError, match=r"en, de, uk are too few.*3 languages.*the pivot en"):
        analyse_relatedness(run_dir, QUICK)
    run_dir = dialect_run("hyper")
    with pytest.raises(CheckpointError, match="'8' is neither newest, best, a step"):
        analyse_relatedness(run_dir, QUICK._replace(checkpoint="8"))
    with pytest.raises(DataError, match="--distances"):
        analyse_relatedness(run_dir, QUICK, tmp_path / "none.csv")
    assert not (run_dir / "analysis").exists()


def test_a_run_folder_may_have_moved(dialect_run: MakeRun, tmp_path: Path) -> None:
    old = dialect_run("hyper")
    moved = old.rename(tmp_path / "elsewhere")
    analyse_relatedness(moved, QUICK)
    assert (moved / "analysis" / "relatedness" / "relatedness.json").is_file()
    assert not old.exists()


def test_the_command_prints_tables_and_json(dialect_run: MakeRun) -> None:
    run_dir = str(dialect_run("hyper"))
    words = ["analyse", "relatedness", "--run", run_dir, "--permutations", "99"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "tiny, step 7: nearest relative" in done.stdout
    assert "decoder_cka" in done.stdout
    done = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["permutations"] == 99
