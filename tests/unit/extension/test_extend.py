from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import hyperadapter
from hyperadapter.cli import cli
from hyperadapter.core.errors import HyperAdapterError
from hyperadapter.core.files import write_text
from hyperadapter.evaluation.translate import Translator
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.serving.export import export_bundle

Trained = Callable[[str], tuple[Path, Seq2Seq]]


def run_extend(run_dir: Path, pairs: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(
        cli,
        [
            *("extend", "--run", str(run_dir), "--language", "af", "--pairs", str(pairs)),
            *("--columns", "en-af", "--out", str(out), *more),
        ],
    )


def fail_extend(run_dir: Path, pairs: Path, out: Path, *more: str) -> HyperAdapterError:
    result = run_extend(run_dir, pairs, out, *more)
    assert isinstance(result.exception, HyperAdapterError), result.output
    assert not out.exists()
    return result.exception


def test_a_new_language_is_added_and_the_others_translate_as_before(
    trained: Trained, af_pairs: Path, tmp_path: Path
) -> None:
    run_dir, _ = trained("hyper")
    out = tmp_path / "with-af"
    result = run_extend(run_dir, af_pairs, out, "--passes", "6", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads((out / "extension.json").read_text())
    assert report["relatives"][0]["code"] in ("de", "nl")
    assert report["parameters"] == 8
    assert report["others_unchanged"] is True
    assert report["pairs"]["train"] + report["pairs"]["valid"] == len(
        set(af_pairs.read_text().splitlines())
    )
    after, before = report["after"]["en-af"], report["before"]["en-af"]
    assert after["signatures"]["chrfpp"].startswith("nrefs:1|")
    assert after["loss"] <= before["loss"]
    assert (out / "extension.png").stat().st_size > 10_000
    old, new = (Translator.from_run(folder) for folder in (run_dir, out))
    texts = ["house tree bird", "river", "tree tree house"]
    for code in ("de", "es", "uk"):
        assert new.translate(texts, "en", code) == old.translate(texts, "en", code)
    # What any run can do: be loaded, exported.
    model = hyperadapter.load(out)
    assert "en-af" in model.directions
    assert model.translate(texts, src="en", tgt="af") == new.translate(texts, "en", "af")
    export_bundle(out, tmp_path / "bundle", directions=["en-af"])
    bundle = hyperadapter.load(tmp_path / "bundle")
    assert bundle.translate(texts, src="en", tgt="af") == new.translate(texts, "en", "af")


def test_the_table_says_what_was_gained(trained: Trained, af_pairs: Path, tmp_path: Path) -> None:
    result = run_extend(trained("hyper")[0], af_pairs, tmp_path / "x", "--passes", "1")
    assert result.exit_code == 0, result.output
    assert "af: 8 numbers fitted to" in result.stdout
    assert "the others' are unchanged" in result.stdout
    result = run_extend(
        trained("hyper")[0], af_pairs, tmp_path / "y", "--passes", "1", "--fit", "all"
    )
    assert "the others' are changed" in result.stdout


def test_held_out_pairs_of_ones_own(trained: Trained, af_pairs: Path, tmp_path: Path) -> None:
    valid = tmp_path / "valid.tsv"
    write_text(valid, "house bird\thaus vogel\ntree\tbaum\n")
    more = ("--valid", str(valid), "--passes", "1", "--json")
    report = json.loads(run_extend(trained("hyper")[0], af_pairs, tmp_path / "x", *more).stdout)
    assert report["pairs"]["valid"] == 2
    assert report["pairs"]["train"] == len(set(af_pairs.read_text().splitlines()))


def test_what_is_held_out_is_not_learnt(
    trained: Trained, af_pairs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir, lines = trained("hyper")[0], sorted(set(af_pairs.read_text().splitlines()))
    valid = tmp_path / "valid.tsv"
    write_text(valid, "".join(f"{line}\n" for line in lines[:5]))
    more = ("--valid", str(valid), "--passes", "1", "--json")
    report = json.loads(run_extend(run_dir, af_pairs, tmp_path / "x", *more).stdout)
    assert report["pairs"]["valid"] == 5
    assert report["pairs"]["train"] == len(lines) - 5
    assert f"5 of {len(lines)} pairs are left out" in caplog.text
    error = fail_extend(run_dir, af_pairs, tmp_path / "y", "--valid", str(af_pairs))
    assert "all of --pairs are in --valid too" in str(error)


@pytest.mark.parametrize("init", ["mixture", "mean", "random", "es"])
def test_ways_to_begin(trained: Trained, af_pairs: Path, tmp_path: Path, init: str) -> None:
    more = ("--init", init, "--passes", "1", "--json")
    report = json.loads(run_extend(trained("hyper")[0], af_pairs, tmp_path / "x", *more).stdout)
    began = report["passes"][0]["valid_loss"]
    losses = {item["code"]: item["loss"] for item in report["relatives"]}
    # In both directions, of which the trained model knows the one out of English only.
    if init == "es":
        assert abs(began - losses["es"]) < 0.3
    if init == "mixture":
        assert began < losses["es"] - 0.3


def test_adapters_of_directions_are_not_mixed(
    trained: Trained, af_pairs: Path, tmp_path: Path
) -> None:
    run_dir = trained("direction")[0]
    error = fail_extend(run_dir, af_pairs, tmp_path / "x", "--init", "mixture")
    assert "this run has adapters of directions; write --init loss" in str(error)
    result = run_extend(run_dir, af_pairs, tmp_path / "x", "--init", "mean", "--passes", "1")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("kind", ["none", "family"])
def test_nothing_to_fit_is_said_at_once(
    trained: Trained, af_pairs: Path, tmp_path: Path, kind: str
) -> None:
    error = fail_extend(trained(kind)[0], af_pairs, tmp_path / "x", "--keep-tag")
    assert f"nothing of af can be fitted: with adapters of kind {kind}" in str(error)
    error = fail_extend(
        trained(kind)[0], af_pairs, tmp_path / "x", "--keep-tag", "--fit", "embedding"
    )
    assert "--keep-tag and --fit embedding exclude each other" in str(error)


def test_a_run_that_cannot_be_written_leaves_nothing(
    trained: Trained, af_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Path:
        raise OSError("the disk is gone")

    monkeypatch.setattr("hyperadapter.extension.extend.plot_extension", fail)
    result = run_extend(trained("hyper")[0], af_pairs, tmp_path / "x", "--passes", "1")
    assert isinstance(result.exception, OSError)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--init", "xx"], r"--init xx: no language of that name.*de, nl, es, fr, uk"),
        (["--init", "distances"], r"--init distances and --distances FILE belong together"),
        (["--columns", "en-de"], r"--pairs are of en-de, but af is added beside"),
        (["--language", "de", "--columns", "en-de"], r"knows 'de' already"),
    ],
)
def test_what_cannot_be_done(
    trained: Trained, af_pairs: Path, tmp_path: Path, more: list[str], complaint: str
) -> None:
    error = fail_extend(trained("hyper")[0], af_pairs, tmp_path / "x", *more)
    assert re.search(complaint, str(error)), str(error)


def test_an_unknown_part_is_named(trained: Trained, af_pairs: Path, tmp_path: Path) -> None:
    result = run_extend(trained("hyper")[0], af_pairs, tmp_path / "x", "--fit", "heads")
    assert result.exit_code == 2
    assert "heads is no part of a model; write embedding, encoder" in result.output


def test_a_run_folder_is_never_replaced(trained: Trained, af_pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    out.mkdir()
    result = run_extend(trained("hyper")[0], af_pairs, out)
    assert "x exists; name a new folder" in str(result.exception)


def test_distances_choose_the_relative(trained: Trained, af_pairs: Path, tmp_path: Path) -> None:
    codes = ["de", "nl", "es", "af"]
    near = {("es", "af"), ("af", "es")}
    rows = [
        [code, *("0" if code == o else "0.1" if (code, o) in near else "0.9" for o in codes)]
        for code in codes
    ]
    path = tmp_path / "d.csv"
    write_text(path, "\n".join(",".join(row) for row in [["", *codes], *rows]) + "\n")
    result = run_extend(
        trained("hyper")[0], af_pairs, tmp_path / "x",
        "--init", "distances", "--distances", str(path), "--passes", "1", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    losses = {item["code"]: item["loss"] for item in report["relatives"]}
    began = report["passes"][0]["valid_loss"]
    assert abs(losses["es"] - began) < 0.5 < abs(losses["de"] - began)
