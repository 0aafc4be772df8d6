"""An extended run is a run like any other, although its data never had the new language."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_pipeline.bitext import SPLITS, read_split
from hyperadapter.cli import cli
from hyperadapter.core.errors import DataError
from hyperadapter.core.files import write_json, write_text
from hyperadapter.model.seq2seq import Seq2Seq
from tests.unit.analysis.conftest import LANGUAGES

Trained = Callable[[str], tuple[Path, Seq2Seq]]
OTHERS = LANGUAGES[1:]


@pytest.fixture
def run_dir(trained: Trained, data_folder: Path, af_pairs: Path, tmp_path: Path) -> Path:
    """Extends a run whose data say what they were made with."""
    data, out = tmp_path / "data", tmp_path / "with-af"
    shutil.copytree(data_folder, data)
    splits = {
        f"en-{code}": {
            split: {"num_pairs": len(read_split(data / "clean", split, ("en", code)))}
            for split in SPLITS
        }
        for code in OTHERS
    }
    write_json(data / "clean" / "manifest.json", {"splits": splits})
    run("extend", "--run", trained("hyper")[0], "--language", "af", "--pairs", af_pairs,
        "--columns", "en-af", "--out", out, "--passes", 1)  # fmt: skip
    text = (out / "config.yaml").read_text(encoding="utf-8")
    write_text(out / "config.yaml", text.replace(str(data_folder), str(data)))
    return out


def run(*words: object) -> str:
    done = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_it_is_evaluated(run_dir: Path, af_pairs: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluate = ["evaluate", "--config", run_dir / "config.yaml"]
    with caplog.at_level(logging.WARNING):
        scores = json.loads(run(*evaluate, "--json"))
    known = [f"{a}-{b}" for code in OTHERS for a, b in (("en", code), (code, "en"))]
    assert [item["direction"] for item in scores["directions"]] == known
    assert "en-af, af-en: the data were made without these directions" in caplog.text
    with pytest.raises(DataError, match=r"lacks en-af.*--test-set"):
        run(*evaluate, "--directions", "en-af")
    own = run(*evaluate, "--test-set", af_pairs, "--direction", "en-af", "--json")
    assert [item["direction"] for item in json.loads(own)["directions"]] == ["en-af"]


def test_it_is_analysed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for place, paths in (("swap.plot_matrix", Path("x.png")), ("relatedness.plot_relatedness", [])):
        monkeypatch.setattr(f"hyperadapter.analysis.{place}", lambda *given, p=paths: p)
    swap = ["analyse", "swap", "--run", run_dir, "--permutations", 99, "--json"]
    with caplog.at_level(logging.WARNING):
        assert json.loads(run(*swap))["languages"] == list(OTHERS)
    assert "has no text of af, which is left out" in caplog.text
    with pytest.raises(DataError, match=r"no text of af with en, .* leave it out of --languages"):
        run(*swap, "--languages", "de,af")
    run("analyse", "relatedness", "--run", run_dir, "--permutations", 99)
    found = run_dir / "analysis" / "relatedness" / "distances.csv"
    assert "af" in found.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["bundle", "ctranslate2"])
def test_it_is_exported(run_dir: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / kind
    run("export", "--run", run_dir, "--out", out, "--format", kind, "--directions", "en-af")
    words = ["translate", "--src", "en", "--tgt", "af", "--run"]
    found = [
        CliRunner().invoke(cli, [*words, str(place)], input="house tree\n").stdout
        for place in (run_dir, out)
    ]
    assert found[0] == found[1] != "\n"
