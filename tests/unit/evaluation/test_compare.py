"""Comparing runs: the same sentences, the same resamples, and who is better."""

from __future__ import annotations

import csv
import json
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from hyperadapter.cli import cli
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import sha256_file, write_json, write_text
from hyperadapter.evaluation.compare import (
    COMPARED_METRICS,
    Comparison,
    compare_runs,
    comparison_rows,
    comparison_tables,
)
from hyperadapter.evaluation.report import comparison_figures
from hyperadapter.evaluation.score import METRICS, score_corpus
from tests.unit.evaluation.made_results import made_direction, made_result

WORDS = ["the", "a", "file", "menu", "window", "was", "not", "found", "open", "close", "new"]
DIRECTIONS = ("en-de", "de-en", "en-zh-Hans")
MakeRun = Callable[..., Path]


def sentences(seed: int, count: int = 60) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(3, 9))) for _ in range(count)]


def spoilt(texts: Sequence[str], share: float, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    keep = [[w if generator.random() >= share else "?" for w in text.split()] for text in texts]
    return [" ".join(words) for words in keep]


REFERENCES = {name: sentences(number) for number, name in enumerate(DIRECTIONS)}
REFERENCES["fr-de"] = REFERENCES["en-de"]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes an evaluated run whose translations have so many wrong words, by direction."""

    def make(name: str, wrong: dict[str, float], split: str = "test", seed: int = 0) -> Path:
        folder = tmp_path / name / "evaluation" / split
        items = []
        for direction, share in wrong.items():
            ref = REFERENCES[direction]
            texts = {"src": ref[::-1], "ref": ref, "hyp": spoilt(ref, share, seed)}
            for kind, lines in texts.items():
                write_text(folder / f"{direction}.{kind}.txt", "".join(f"{x}\n" for x in lines))
            checksum = sha256_file(folder / f"{direction}.hyp.txt")
            items.append(made_direction(direction, 1.0, hyp_sha256=checksum))
        write_json(folder / "scores.json", made_result(items).model_dump(mode="json"))
        return tmp_path / name

    return make


@pytest.fixture
def runs(make_run: MakeRun) -> tuple[Path, Path]:
    """A baseline, and a run that is much better, worse, and the same."""
    return (
        make_run("base", {"en-de": 0.5, "de-en": 0.2, "en-zh-Hans": 0.3}),
        make_run("other", {"en-de": 0.1, "de-en": 0.6, "en-zh-Hans": 0.3}),
    )


@pytest.mark.parametrize("metric", COMPARED_METRICS)
def test_winners_and_losers(runs: tuple[Path, Path], metric: str) -> None:
    [found] = compare_runs(runs, metric=metric, samples=200)  # type: ignore[arg-type]
    assert [item.verdict for item in found.directions] == ["better", "worse", "no difference"]
    assert [found.count(v) for v in ("better", "worse", "no difference")] == [1, 1, 1]  # type: ignore[arg-type]
    for item in found.directions:
        tgt = item.direction.partition("-")[2]
        ref, folder = REFERENCES[item.direction], runs[1] / "evaluation" / "test"
        hyp = (folder / f"{item.direction}.hyp.txt").read_text(encoding="utf-8").splitlines()
        expected = score_corpus(hyp, ref, tgt).value(metric)  # type: ignore[arg-type]
        assert item.score == pytest.approx(expected, abs=1e-9)
        assert item.difference == pytest.approx(item.score - item.baseline)
        assert item.low <= item.difference <= item.high
        assert item.p_value <= item.p_holm
    same = found.directions[2]
    assert (same.difference, same.low, same.high, same.p_value, same.p_holm) == (0, 0, 0, 1, 1)
    assert found.overall.difference == pytest.approx(
        sum(item.difference for item in found.directions) / 3
    )
    assert len(found.signatures) == (2 if metric == "bleu" else 1)


def test_the_order_of_the_runs_is_mirrored(runs: tuple[Path, Path]) -> None:
    [there] = compare_runs(runs, samples=200)
    [back] = compare_runs(runs[::-1], samples=200)
    for one, other in zip(
        (*there.directions, there.overall), (*back.directions, back.overall), strict=True
    ):
        assert one.difference == pytest.approx(-other.difference)
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
        assert (one.p_value, one.p_holm) == (other.p_value, other.p_holm)
    turned = {"better": "worse", "worse": "better", "no difference": "no difference"}
    verdicts = [turned[item.verdict] for item in there.directions]
    assert [item.verdict for item in back.directions] == verdicts


def test_a_run_and_its_copy(make_run: MakeRun) -> None:
    shares = dict.fromkeys(DIRECTIONS, 0.3)
    [found] = compare_runs([make_run("a", shares), make_run("b", shares)], samples=100)
    assert {(item.p_value, item.p_holm, item.verdict) for item in found.directions} == {
        (1.0, 1.0, "no difference")
    }
    assert found.overall.p_value == 1


def test_other_runs_and_directions_change_nothing(make_run: MakeRun) -> None:
    base, one = make_run("base", {"en-de": 0.5}), make_run("one", {"en-de": 0.4}, seed=1)
    more = make_run("more", {"en-de": 0.3, "de-en": 0.1}, seed=2)
    [alone] = compare_runs([base, one], samples=150)
    with_others = compare_runs([base, more, one], samples=150)
    assert with_others[1].directions == alone.directions
    assert [Path(item.run).name for item in with_others] == ["more", "one"]
    assert with_others[0].left_out == ("de-en",)
    wide = [make_run(name, {"de-en": 0.2, "en-de": s}, seed=seed)
            for name, s, seed in (("x", 0.5, 0), ("y", 0.4, 1))]  # fmt: skip
    [with_more] = compare_runs(wide, samples=150)
    ours = next(item for item in with_more.directions if item.direction == "en-de")
    assert ours.p_value == alone.directions[0].p_value
    assert compare_runs([base, one], samples=150, seed=1)[0].directions != alone.directions


def test_processes_find_the_same_in_the_same_order(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = compare_runs(runs, samples=200)
    monkeypatch.setattr("hyperadapter.evaluation.compare._LEAST_FOR_PROCESSES", 2)
    assert compare_runs(runs, samples=200) == alone


def test_directions_are_resampled_each_for_itself(make_run: MakeRun) -> None:
    shares = {"en-de": 0.4, "fr-de": 0.4}  # with the same texts
    runs = [make_run("base", shares), make_run("other", shares, seed=1)]
    [found] = compare_runs(runs, samples=300)
    one, other = found.directions
    assert one.difference == other.difference
    assert one.low != other.low
    # The mean of two independent differences spreads less than each, by a factor of 0.7.
    width = (one.high - one.low + other.high - other.low) / 2
    assert 0.5 < (found.overall.high - found.overall.low) / width < 0.9


def test_holm_is_over_directions(make_run: MakeRun) -> None:
    base = make_run("base", dict.fromkeys(DIRECTIONS, 0.9))
    other = make_run("other", dict.fromkeys(DIRECTIONS, 0.0))
    [found] = compare_runs([base, other], samples=199)
    assert {item.p_value for item in found.directions} == {1 / 200}
    assert {item.p_holm for item in found.directions} == {3 / 200}
    assert found.overall.p_holm == found.overall.p_value == 1 / 200


def test_resamples_suffice_for_the_directions(
    runs: tuple[Path, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare_runs(runs)[0].samples == 1000
    monkeypatch.setattr("hyperadapter.evaluation.compare._SAMPLES_A_DIRECTION", 400)
    assert compare_runs(runs)[0].samples == 1200
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        [found] = compare_runs(runs, samples=50)
    assert "50 resamples of 3 directions cannot show a difference in any" in caplog.messages[0]
    assert "the smallest p-value is 0.06; use --samples 1200 or more" in caplog.messages[0]
    assert found.count("no difference") == 3


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(("kind", "what"), [("ref", "references"), ("src", "sources")])
def test_other_texts_are_refused_and_the_direction_named(
    runs: tuple[Path, Path], kind: str, what: str
) -> None:
    path = runs[1] / "evaluation" / "test" / f"de-en.{kind}.txt"
    write_text(path, path.read_text(encoding="utf-8").replace("file", "file "))
    with pytest.raises(
        DataError, match=rf"de-en cannot be compared: the {what} of .*base and .*other differ .*"
        r"evaluation\.max_sentences",
    ):  # fmt: skip
        compare_runs(runs, samples=100)


def test_translations_that_were_not_scored_are_refused(runs: tuple[Path, Path]) -> None:
    folder = runs[1] / "evaluation" / "test"
    write_text(folder / "de-en.hyp.txt", "x\n" * 60)
    with pytest.raises(DataError, match=r"de-en\.hyp\.txt is not what .* de-en was translated aga"):
        compare_runs(runs, samples=100)
    (folder / "de-en.hyp.txt").unlink()
    with pytest.raises(DataError, match=r"de-en\.hyp\.txt does not exist; evaluate the run again"):
        compare_runs(runs, samples=100)
    (folder / "en-de.ref.txt").unlink()
    with pytest.raises(DataError, match=r"en-de\.ref\.txt does not exist"):
        compare_runs(runs, samples=100)


def test_runs_that_cannot_be_compared(make_run: MakeRun, tmp_path: Path) -> None:
    one, other = make_run("one", {"en-de": 0.1}), make_run("other", {"de-en": 0.1})
    with pytest.raises(DataError, match=r"no direction of test in common: .*one has en-de; .*othe"):
        compare_runs([one, other])
    with pytest.raises(ConfigError, match="needs two run folders or more; the first is the base"):
        compare_runs([one])
    with pytest.raises(ConfigError, match=r"a run is given twice: .*one, .*one"):
        compare_runs([one, one / ".." / "one"])
    with pytest.raises(DataError, match=r"flores/scores\.json .* \(evaluated are test\)"):
        compare_runs([one, other], split="flores")


# ----------------------------------------------------------------------------------------- command


def invoke(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli, ["compare", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_prints_writes_and_draws(runs: tuple[Path, Path], tmp_path: Path) -> None:
    table, folder = tmp_path / "x.csv", tmp_path / "figures"
    out = invoke(*runs, "--samples", "200", "--csv", table, "--out", folder)
    assert "200 resamples, seed 12345" in out
    assert "nrefs:1" in out
    assert "mean of directions" in out
    assert " worse " in out
    assert sorted(path.name for path in folder.iterdir()) == [
        "difference_1_other.png", "scores_0_base.png", "scores_1_other.png"
    ]  # fmt: skip
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["direction"] for row in rows] == [*DIRECTIONS, "mean of directions"]
    assert [row["verdict"] for row in rows[:3]] == ["better", "worse", "no difference"]


def test_the_command_prints_json(runs: tuple[Path, Path]) -> None:
    [tree] = json.loads(invoke(*runs, "--samples", "200", "--json", "--metric", "bleu"))
    found = Comparison.model_validate_json(json.dumps(tree))
    assert (found,) == compare_runs(runs, metric="bleu", samples=200)


def test_tables_and_figures_of_several_runs(make_run: MakeRun) -> None:
    runs = [make_run(name, {"en-de": share, "de-en": 0.2})
            for name, share in (("a", 0.5), ("b", 0.1), ("c", 0.5))]  # fmt: skip
    found = compare_runs(runs, samples=100)
    *tables, (title, columns, rows) = comparison_tables(found)
    assert len(tables) == 2
    assert "better or worse than" in title
    assert [row[1:4] for row in rows] == [(1, 0, 1), (0, 0, 2)]
    assert len(columns) == len(rows[0])
    assert len(comparison_rows(found)) == 2 * 3
    figures = comparison_figures(found)
    assert list(figures) == [
        "scores_0_a", "scores_1_b", "difference_1_b", "scores_2_c", "difference_2_c"
    ]  # fmt: skip
    texts = [text.get_text() for text in figures["difference_1_b"].axes[0].texts]
    assert len([text for text in texts if text.endswith("*")]) == 1


def test_what_can_be_compared_are_metrics() -> None:
    assert set(COMPARED_METRICS) < set(METRICS)
