"""Languages made of others: the dialect is found, by known text or given, and all is written."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from data_pipeline.tokenizer import Tokenizer
from hyperadapter.analysis.plots import plot_weights
from hyperadapter.cli import cli
from hyperadapter.core.errors import CheckpointError, ConfigError, DataError, LanguageError
from hyperadapter.core.events import EVENTS_FILE
from hyperadapter.core.files import sha256_file
from hyperadapter.core.languages import Direction
from hyperadapter.extension import interpolate as interpolate_module
from hyperadapter.extension import interpolate_report
from hyperadapter.extension import mixture as mixture_module
from hyperadapter.extension.interpolate import InterpolateOptions, analyse_interpolate
from hyperadapter.extension.interpolate_report import interpolate_tables
from hyperadapter.extension.subjects import (
    Unseen,
    batches_by_direction,
    left_out_subjects,
    read_text,
    unseen_subject,
)
from hyperadapter.extension.text import Pairs
from hyperadapter.model.seq2seq import Seq2Seq
from tests.unit.analysis.conftest import WORDS, make_config, make_model, save_run

Trained = Callable[[str], tuple[Path, Seq2Seq]]
OTHERS = ("de", "nl", "es", "fr", "uk")


@pytest.fixture
def run_of(trained: Trained, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a trained run, so that a test may write to it."""
    return lambda kind: Path(shutil.copytree(trained(kind)[0], tmp_path / kind))


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes an empty file for the picture, and learns until a dialect shows."""
    monkeypatch.setattr(mixture_module, "_MOST_PASSES", 15)
    monkeypatch.setattr(interpolate_report, "plot_weights", lambda *given: given[-1].touch())


@pytest.fixture
def quick(no_picture: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also hardly learns, where it does not matter what is learnt."""
    monkeypatch.setattr(mixture_module, "_MOST_PASSES", 2)


@pytest.fixture
def af(af_pairs: Path) -> Unseen:
    """Text of a new language, which has the words of de and nl."""
    return Unseen("af", Direction("en", "af"), (af_pairs,))


def weights_of(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "step-00000007" / "weights.safetensors"


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("kind", ["hyper", "language"])
def test_a_dialect_is_made_of_the_other(run_of: Callable[[str], Path], kind: str) -> None:
    options = InterpolateOptions(languages=("de", "nl"))
    report = analyse_interpolate(run_of(kind), options)
    found = report["languages"]
    assert list(found) == ["de", "nl"]
    for code, other in (("de", "nl"), ("nl", "de")):
        item = found[code]
        assert code not in item["weights"]["learnt"]
        assert item["best_relative"] == other
        # Not all of it: nothing was trained into English, and there others are as good.
        assert item["weights"]["learnt"][other] > 0.8, item["weights"]
        assert 1 <= item["effective_number"] < 2
        losses = {way: values[f"en-{code}"] for way, values in item["loss_nats_per_token"].items()}
        assert list(losses) == ["best", "uniform", "learnt", "own"]
        assert abs(losses["learnt"] - losses["own"]) < 0.2
        assert losses["uniform"] > losses["learnt"] + 0.05
        assert item["pairs"] == {"learn": 14, "stop": 5, "test": 4}
        assert item["tested_on"] == "the run's test split"


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("has_test", [False, True])
def test_an_unseen_language_is_made_of_its_relatives(
    run_of: Callable[[str], Path], af: Unseen, tmp_path: Path, has_test: bool
) -> None:
    run_dir = run_of("hyper")
    before = sha256_file(weights_of(run_dir))
    if has_test:
        lines = af.pairs[0].read_text().splitlines(keepends=True)
        (tmp_path / "test.tsv").write_text("".join(lines[:7]))
        af = af._replace(test=(tmp_path / "test.tsv",))
    report = analyse_interpolate(run_dir, InterpolateOptions(af, sentences=30))
    item = report["languages"]["af"]
    weights = item["weights"]["learnt"]
    assert tuple(weights) == OTHERS
    assert weights["de"] + weights["nl"] > 0.9
    assert item["best_relative"] in ("de", "nl")
    assert list(item["loss_nats_per_token"]) == ["best", "uniform", "learnt"]
    losses = item["loss_nats_per_token"]
    assert losses["learnt"]["en-af"] < losses["uniform"]["en-af"] - 0.5
    assert item["tested_on"] == ("--test" if has_test else "held-out pairs of --pairs")
    assert item["coverage"]["spelled_out"] == 0
    assert report["mixed"] == "af"
    assert sha256_file(weights_of(run_dir)) == before


def test_what_is_tested_on_is_not_learnt_from(
    run_of: Callable[[str], Path], af: Unseen, tmp_path: Path
) -> None:
    lines = af.pairs[0].read_text().splitlines(keepends=True)
    (tmp_path / "test.tsv").write_text("".join(lines[:7]))
    subject = unseen_subject(run_of("hyper"), af, "newest")
    for given in (af, af._replace(test=(tmp_path / "test.tsv",))):
        text = read_text(subject, given, 20, 1)
        assert len(text.learn.pivot) + len(text.stop.pivot) == 20
        learn, stop, test = (set(pairs.pivot) for pairs in text[:3])
        assert not learn & stop
        assert not learn & test
        assert not stop & test
        assert text == read_text(subject, given, 20, 1)
        assert text.learn != read_text(subject, given, 20, 2).learn
    sides = {line.rstrip("\n") for line in lines}
    assert {"\t".join(pair) for pair in zip(*text.learn, strict=True)} <= sides


def test_near_duplicates_of_training_text_are_left_out(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperadapter.extension import subjects

    [subject] = left_out_subjects(trained("hyper")[0], ("de",), "newest")
    read = subjects.read_split

    def mark(*given: Any) -> Any:
        text = read(*given)
        text.near_duplicate[1] = True
        return text

    before = subjects._read_split(subject, "valid")
    monkeypatch.setattr(subjects, "read_split", mark)
    after = subjects._read_split(subject, "valid")
    assert after == before.select([0, *range(2, len(before.pivot))])


@pytest.mark.parametrize("codes", [("uk",), ("de",)])
def test_batches_have_every_sentence_once_in_each_direction(
    trained: Trained, data_folder: Path, codes: tuple[str, ...]
) -> None:
    [subject] = left_out_subjects(trained("hyper")[0], codes, "newest")
    code = codes[0]
    tokenizer = Tokenizer.load(data_folder / "tokenizer")
    pairs = Pairs(
        [f"{word} tree {'bird ' * k}" for k in range(9) for word in WORDS["en"]],
        [f"{word} {WORDS[code][1]}" for _ in range(9) for word in WORDS[code]],
    )
    batches = batches_by_direction(subject, tokenizer, pairs)
    assert list(batches) == [f"en-{code}", f"{code}-en"]
    languages = subject.config.data.languages
    for direction, found in batches.items():
        assert len(found) > 2
        src, tgt = direction.split("-")
        for batch in found:
            assert [languages[int(n)] for n in batch.src_language_P] == [src]
            assert [languages[int(n)] for n in batch.tgt_language_P] == [tgt]
            assert batch.tgt_in_M.numel() <= 200
        pieces = tokenizer.encode(pairs.new if tgt == code else pairs.pivot)
        assert sum(b.target_K.numel() for b in found) == sum(len(ids) + 1 for ids in pieces)


def test_every_file_is_written_and_told_to_the_tracker(
    run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture_module, "_MOST_PASSES", 2)
    run_dir = run_of("hyper")
    report = analyse_interpolate(run_dir, InterpolateOptions(languages=("de", "uk"), bleu=True))
    folder = run_dir / "analysis" / "interpolate" / "leave_one_out"
    names = {"report.json", "weights.csv", "weights.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
    with (folder / "weights.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8
    [row] = [row for row in rows if (row["language"], row["part"]) == ("de", "fr")]
    item = report["languages"]["de"]
    assert float(row["weight_learnt"]) == item["weights"]["learnt"]["fr"]
    assert float(row["loss_alone"]) == item["loss_alone"]["fr"]
    assert (row["family"], row["family_of_part"]) == ("germanic", "romance")
    assert item["bleu_signatures"]
    assert all("nw:2" in signature for signature in item["chrfpp_signatures"])
    # Translated with other rows, not always with the same.
    assert item["chrfpp"]["uniform"]["en-de"] < item["chrfpp"]["own"]["en-de"] - 10
    events = [json.loads(line) for line in (run_dir / EVENTS_FILE).read_text().splitlines()]
    assert {Path(event["artifact"]).name for event in events if event.get("folder")} == names
    [logged] = [event["metrics"] for event in events if "metrics" in event]
    assert logged["analysis/interpolate/de/effective_number"] == item["effective_number"]
    assert (
        logged["analysis/interpolate/uk/own_loss"]
        == report["languages"]["uk"]["loss_nats_per_token"]["own"]["all"]
    )
    assert logged["analysis/interpolate/de/own_chrfpp/en-de"] == item["chrfpp"]["own"]["en-de"]
    assert not [event for event in events if event.get("status")]


def test_the_loss_of_both_directions_is_that_of_all_tokens(
    trained: Trained, data_folder: Path
) -> None:
    [subject] = left_out_subjects(trained("hyper")[0], ("de",), "newest")
    text = read_text(subject, None, 100, 1)
    batches = batches_by_direction(subject, Tokenizer.load(data_folder / "tokenizer"), text.test)
    mixture = interpolate_module.Mixture(subject.loaded.model, "de", subject.others)
    losses = interpolate_module._losses(mixture, batches, mixture.rows())
    assert list(losses) == ["en-de", "de-en", "all"]
    whole = mixture.mean_loss([b for found in batches.values() for b in found], mixture.rows())
    assert losses["all"] == pytest.approx(whole)
    assert losses["en-de"] != pytest.approx(losses["de-en"])


@pytest.mark.usefixtures("quick")
def test_distances_give_weights_too(
    run_of: Callable[[str], Path], af: Unseen, tmp_path: Path
) -> None:
    path = tmp_path / "distances.csv"
    path.write_text("x,af,de,es,uk\naf,0,1,4,4\nde,1,0,4,4\nes,4,4,0,4\nuk,4,4,4,0\n")
    options = InterpolateOptions(af, sentences=20, distances_file=path)
    item = analyse_interpolate(run_of("hyper"), options)["languages"]["af"]
    weights = item["weights"]["distances"]
    assert weights["nl"] == weights["fr"] == 0
    # Nearest are at 1, 1, 4 and 4.
    assert weights["de"] / weights["es"] == pytest.approx(np.exp(3 / 2.5))
    assert list(item["loss_nats_per_token"]) == ["best", "uniform", "learnt", "distances"]
    path.write_text("x,de,es,uk\nde,0,4,4\nes,4,0,4\nuk,4,4,0\n")
    with pytest.raises(DataError, match=r"has no af, whose distances to the run's languages are n"):
        analyse_interpolate(run_of("language"), options)


@pytest.mark.usefixtures("quick")
def test_a_left_out_language_without_distances_goes_without(
    run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "distances.csv"
    path.write_text("x,nl,es,uk\nnl,0,4,4\nes,4,0,4\nuk,4,4,0\n")
    options = InterpolateOptions(languages=("de", "nl"), distances_file=path)
    report = analyse_interpolate(run_of("language"), options)
    assert "distances" not in report["languages"]["de"]["weights"]
    assert "distances" in report["languages"]["nl"]["weights"]
    [(_, columns, rows), *_] = interpolate_tables(report)
    assert columns == ("language", "best", "uniform", "distances", "learnt", "own")
    assert [row[3] for row in rows if row[0].startswith("de")] == ["-", "-", "-"]


@pytest.mark.usefixtures("quick")
def test_the_same_seed_gives_the_same_report(run_of: Callable[[str], Path], af: Unseen) -> None:
    run_dir = run_of("hyper")
    folder = run_dir / "analysis" / "interpolate" / "af"
    files = []
    for seed in (1, 1, 2):
        analyse_interpolate(run_dir, InterpolateOptions(af, sentences=20, seed=seed))
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]
    assert files[1]["weights.csv"] != files[2]["weights.csv"]


def test_languages_that_are_mixed_up(run_of: Callable[[str], Path], af: Unseen) -> None:
    run_dir = run_of("hyper")
    for unseen, complaint in (
        (af._replace(code="de"), r"knows 'de' already.*and --languages de mixes it from the oth"),
        (af._replace(code="da"), r"--columns en-af must name the --language 'da'.*such as en-da"),
        (af._replace(columns=Direction("af", "af")), r"--columns af-af must name the --language"),
        (af._replace(columns=Direction("pt", "af")), r"has no language 'pt'"),
    ):
        with pytest.raises(LanguageError, match=complaint):
            analyse_interpolate(run_dir, InterpolateOptions(unseen))
    for codes, complaint in (
        (("de", "af"), r"'af' cannot be left out, it was not trained with en.*choose from de, nl,"),
        (("en",), r"'en' cannot be left out, it is the pivot"),
        (("de", "nl", "de"), r"'de' is named twice"),
    ):
        with pytest.raises(LanguageError, match=complaint):
            analyse_interpolate(run_dir, InterpolateOptions(languages=codes))
    assert not (run_dir / "analysis").exists()


@pytest.mark.parametrize("kind", ["none", "direction"])
def test_adapters_that_are_not_languages(tmp_path: Path, af: Unseen, kind: str) -> None:
    config = make_config(tmp_path / "run", kind)
    run_dir = save_run(config, make_model(config))
    for options in (InterpolateOptions(af), InterpolateOptions()):
        with pytest.raises(ConfigError, match=rf"adapter\.kind is '{kind}'"):
            analyse_interpolate(run_dir, options)


def test_text_that_is_too_little(
    run_of: Callable[[str], Path], af: Unseen, tmp_path: Path, data_folder: Path
) -> None:
    run_dir = run_of("hyper")
    lines = af.pairs[0].read_text().splitlines(keepends=True)
    few = tmp_path / "few.tsv"
    few.write_text("".join(lines[:5] * 3))
    with pytest.raises(DataError, match=r"^5 distinct pairs of af in --pairs are too few"):
        analyse_interpolate(run_dir, InterpolateOptions(af._replace(pairs=(few,))))
    few.write_text("".join(lines[:12]))
    with pytest.raises(DataError, match=r"^8 distinct .*give 10 or more that are not tested on"):
        analyse_interpolate(run_dir, InterpolateOptions(af._replace(pairs=(few,))))
    with pytest.raises(DataError, match=r"^0 distinct pairs of af in --pairs are too few"):
        analyse_interpolate(run_dir, InterpolateOptions(af._replace(test=af.pairs)))
    # Without names a language without text is passed over, with its name it is an error.
    (tmp_path / "data" / "clean").mkdir(parents=True)
    shutil.copytree(data_folder / "tokenizer", tmp_path / "data" / "tokenizer")
    config = make_config(tmp_path / "empty", data={"folder": str(tmp_path / "data")})
    pieces = Tokenizer.load(data_folder / "tokenizer").fingerprint
    empty = save_run(config, make_model(config), pieces)
    with pytest.raises(DataError, match=r"en-uk\.tsv does not exist"):
        analyse_interpolate(empty, InterpolateOptions(languages=("uk",)))
    with pytest.raises(DataError, match=r"no language of this run has enough validation and test"):
        analyse_interpolate(empty, InterpolateOptions())


def test_another_tokenizer_is_refused(tmp_path: Path, data_folder: Path) -> None:
    config = make_config(tmp_path / "run", data={"folder": str(data_folder)})
    run_dir = save_run(config, make_model(config), "another")
    with pytest.raises(CheckpointError, match="were trained with the tokenizer another"):
        analyse_interpolate(run_dir, InterpolateOptions())


def test_only_directions_that_were_trained_are_mixed(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directions = ["en-de", "de-en", "en-nl", "nl-en", "en-es", "uk-en"]
    data = {"folder": str(data_folder), "directions": directions}
    config = make_config(tmp_path / "run", data=data, languages=("en", "de", "nl", "es", "uk"))
    pieces = Tokenizer.load(data_folder / "tokenizer").fingerprint
    run_dir = save_run(config, make_model(config), pieces)
    found = {s.new.code: s for s in left_out_subjects(run_dir, (), "newest")}
    assert {code: list(map(str, s.directions)) for code, s in found.items()} == {
        "de": ["en-de", "de-en"],
        "nl": ["en-nl", "nl-en"],
        "es": ["en-es"],
        "uk": ["uk-en"],
    }
    assert {code: s.others for code, s in found.items()} == {
        "de": ("nl",),
        "nl": ("de",),
        "es": ("de", "nl"),
        "uk": ("de", "nl"),
    }
    drawn: list[Any] = []

    def draw(*given: Any) -> None:
        drawn.extend(given)
        given[-1].touch()

    monkeypatch.setattr(interpolate_report, "plot_weights", draw)
    report = analyse_interpolate(run_dir, InterpolateOptions(languages=("es", "de")))
    assert list(report["languages"]["es"]["loss_nats_per_token"]["own"]) == ["en-es", "all"]
    weights, rows, columns, *_ = drawn
    assert (rows, set(columns)) == (["de", "es"], {"de", "nl"})
    learnt = report["languages"]["es"]["weights"]["learnt"]
    assert weights[1].tolist() == [learnt[code] for code in columns]
    assert np.isnan(weights[0, columns.index("de")])
    assert weights[0, columns.index("nl")] == 1


@pytest.mark.usefixtures("quick")
def test_the_command(run_of: Callable[[str], Path], af: Unseen) -> None:
    words = ["analyse", "interpolate", "--run", str(run_of("hyper")), "--sentences", "20"]
    unseen = ["--language", "af", "--columns", "en-af", "--pairs", str(af.pairs[0])]
    done = CliRunner().invoke(cli, [*words, *unseen, "--json"], catch_exceptions=False)
    assert list(json.loads(done.stdout)["languages"]) == ["af"]
    done = CliRunner().invoke(cli, [*words, "--languages", "de", "--bleu"], catch_exceptions=False)
    assert "tiny, step 7: nats per token of the run's test split" in done.stdout
    assert "made of" in done.stdout
    assert " nl 0." in done.stdout
    assert "BLEU / chrF++ [nrefs:1" in done.stdout
    for part in (unseen[:2], unseen[:4], unseen[2:], ["--test", "x.tsv"]):
        done = CliRunner().invoke(cli, [*words, *part])
        assert done.exit_code == 2
        assert "an unseen language needs --language, --pairs and --columns" in done.output
    done = CliRunner().invoke(cli, [*words, *unseen, "--languages", "de"])
    assert done.exit_code == 2
    assert "--languages are those of the run" in done.output


def test_the_picture_has_a_number_for_each_weight_but_not_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    written: list[tuple[int, int, str]] = []
    write = Axes.text

    def spy(self: Axes, x: int, y: int, text: str, **style: Any) -> Any:
        written.append((y, x, text))
        return write(self, x, y, text, **style)

    monkeypatch.setattr(Axes, "text", spy)
    weights = np.array([[np.nan, 0.75, 0.25], [1.0, np.nan, 0.0]])
    path = plot_weights(weights, ["de", "nl"], ["de", "nl", "es"], "t", tmp_path / "w.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert written == [(0, 1, "75"), (0, 2, "25"), (1, 0, "100"), (1, 2, "0")]


@pytest.mark.usefixtures("quick")
def test_a_model_stays_as_it_was(trained: Trained, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(trained("hyper")[0], tmp_path / "run"))
    subjects = left_out_subjects(run_dir, ("de",), "newest")
    state = {k: v.clone() for k, v in subjects[0].loaded.model.state_dict().items()}
    tokenizer = Tokenizer.load(Path(subjects[0].config.data.folder) / "tokenizer")
    text = read_text(subjects[0], None, 20, 1)
    options = InterpolateOptions(bleu=True)
    interpolate_module._measure(subjects[0], text, tokenizer, options)
    for name, tensor in subjects[0].loaded.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
