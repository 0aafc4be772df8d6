"""Evaluation: what is decoded, what is scored, what is averaged, and what is not done twice."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.bitext import read_split
from hyperadapter.core.errors import CheckpointError, ConfigError, DataError
from hyperadapter.core.files import write_text
from hyperadapter.evaluation.evaluate import (
    DirectionResult,
    EvaluationResult,
    evaluate,
    load_result,
    macro_averages,
    signature_lines,
    table_rows,
)
from hyperadapter.evaluation.score import Score, Scores, score_corpus
from hyperadapter.evaluation.translate import Translator

MakeRun = Callable[..., Any]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Directions in the order in which they are decoded."""
    calls: list[str] = []
    translate = Translator.translate

    def spy(self: Translator, texts: Sequence[str], src: str, tgt: str) -> list[str]:
        calls.append(f"{src}-{tgt}")
        return translate(self, texts, src, tgt)

    monkeypatch.setattr(Translator, "translate", spy)
    return calls


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_files_and_scores_of_every_direction(tiny_run: MakeRun, decoded: list[str]) -> None:
    run = tiny_run()
    result = evaluate(run.run_dir, run.config)
    folder = run.run_dir / "evaluation" / "test"
    names = ["en-de", "de-en", "en-fr", "fr-en"]
    assert decoded == names
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["scores.json"]
        + [f"{n}.{end}" for n in names for end in ("src.txt", "ref.txt", "hyp.txt", "json")]
    )
    text = read_split(Path(run.config.data.folder) / "clean", "test", ("en", "fr"))
    assert lines(folder / "fr-en.src.txt") == text.b
    assert lines(folder / "fr-en.ref.txt") == text.a
    hyp = lines(folder / "fr-en.hyp.txt")
    assert hyp == Translator.from_run(run.run_dir).translate(text.b, "fr", "en")
    assert [item.direction for item in result.directions] == names
    item = result.directions[3]
    fresh = [row for row, near in enumerate(text.near_duplicate) if not near]
    assert (item.sentences, item.near_duplicates, len(fresh)) == (12, 4, 8)
    assert item.model == score_corpus(hyp, text.a, "en")
    assert item.copy_source == score_corpus(text.b, text.a, "en")
    fresh_ref = [text.a[row] for row in fresh]
    assert item.model_no_near_duplicates == score_corpus([hyp[r] for r in fresh], fresh_ref, "en")
    assert item.copy_source_no_near_duplicates == score_corpus(
        [text.b[row] for row in fresh], fresh_ref, "en"
    )
    assert item.copy_source.chrf.value > 0


def test_result_says_what_was_evaluated_and_how_fast(tiny_run: MakeRun) -> None:
    run = tiny_run(evaluation={"beam_size": 2, "batch_sentences": 5})
    result = evaluate(run.run_dir, run.config, split="valid", directions=["de-en"])
    assert (result.split, result.step, result.pivot) == ("valid", 100, "en")
    assert result.settings == run.config.evaluation
    speed = result.speed
    assert (speed.sentences, speed.batch_sentences, speed.beam_size) == (12, 5, 2)
    assert speed.sentences_per_s == pytest.approx(12 / speed.seconds)
    assert (speed.device, speed.world_size) == ("cpu", 1)
    assert load_result(run.run_dir, "valid") == result
    assert [item.direction for item in result.directions] == ["de-en"]


def test_what_was_decoded_is_not_decoded_again(tiny_run: MakeRun, decoded: list[str]) -> None:
    run = tiny_run()
    first = evaluate(run.run_dir, run.config)
    decoded.clear()
    assert evaluate(run.run_dir, run.config) == first
    assert decoded == []


def test_an_interrupted_evaluation_goes_on(
    tiny_run: MakeRun, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run()
    spied = Translator.translate

    def stops(self: Translator, texts: Sequence[str], src: str, tgt: str) -> list[str]:
        if src == "fr":
            raise KeyboardInterrupt
        return spied(self, texts, src, tgt)

    monkeypatch.setattr(Translator, "translate", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run.run_dir, run.config)
    with pytest.raises(DataError, match=r"scores.json does not exist; run `hyperadapter evaluate`"):
        load_result(run.run_dir)
    monkeypatch.setattr(Translator, "translate", spied)
    result = evaluate(run.run_dir, run.config)
    assert decoded == ["en-de", "de-en", "en-fr", "fr-en"]
    assert len(result.directions) == 4


@pytest.mark.parametrize("change", ["weights", "settings", "hyp", "manifest", "missing"])
def test_what_changed_is_decoded_again(tiny_run: MakeRun, decoded: list[str], change: str) -> None:
    run = tiny_run()
    config = run.config
    evaluate(run.run_dir, config, directions=["en-de", "de-en"])
    folder = run.run_dir / "evaluation" / "test"
    before = lines(folder / "en-de.hyp.txt")
    decoded.clear()
    if change == "weights":
        run.save(step=200, seed=2)
    elif change == "settings":
        config = config.model_copy(
            update={"evaluation": config.evaluation.model_copy(update={"max_length_extra": 1})}
        )
    elif change == "hyp":
        write_text(folder / "en-de.hyp.txt", "\n".join(before[:5]))
    elif change == "manifest":
        write_text(folder / "en-de.json", '{"fingerprint": 1')
    else:
        (folder / "en-de.hyp.txt").unlink()
    result = evaluate(run.run_dir, config, directions=["en-de", "de-en"])
    everything = change in ("weights", "settings")
    assert decoded == (["en-de", "de-en"] if everything else ["en-de"])
    assert result.step == (200 if change == "weights" else 100)
    after = lines(folder / "en-de.hyp.txt")
    assert len(after) == 12
    assert (after == before) is not everything


def test_new_references_are_scored_without_decoding_again(
    tiny_run: MakeRun, tmp_path: Path, data_folder: Path, decoded: list[str]
) -> None:
    run = tiny_run()
    shutil.copytree(data_folder, tmp_path / "data")
    config = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"folder": str(tmp_path / "data")})}
    )
    first = evaluate(run.run_dir, config, directions=["en-de"])
    path = tmp_path / "data" / "clean" / "test" / "en-de.tsv"
    write_text(path, path.read_text(encoding="utf-8").replace("Bild", "Foto"))
    second = evaluate(run.run_dir, config, directions=["en-de"])
    assert decoded == ["en-de"]
    assert "Foto" in (run.run_dir / "evaluation/test/en-de.ref.txt").read_text(encoding="utf-8")
    assert first.directions[0].copy_source != second.directions[0].copy_source


def test_a_sample_keeps_order_and_serves_both_directions(tiny_run: MakeRun) -> None:
    run = tiny_run(evaluation={"max_sentences": 5})
    result = evaluate(run.run_dir, run.config)
    folder = run.run_dir / "evaluation" / "test"
    text = read_split(Path(run.config.data.folder) / "clean", "test", ("en", "de"))
    english = lines(folder / "en-de.src.txt")
    assert len(english) == 5
    assert english == [line for line in text.a if line in english]
    # The choice is neither the head of the file nor the pair's own.
    assert english != text.a[:5]
    assert english == lines(folder / "de-en.ref.txt") == lines(folder / "fr-en.ref.txt")
    marks = dict(zip(text.a, text.near_duplicate, strict=True))
    assert result.directions[0].near_duplicates == sum(marks[line] for line in english)


def test_a_larger_sample_holds_the_smaller(tiny_run: MakeRun) -> None:
    run = tiny_run(evaluation={"max_sentences": 3})
    folder = run.run_dir / "evaluation" / "test"
    evaluate(run.run_dir, run.config, directions=["en-de"])
    small = lines(folder / "en-de.src.txt")
    settings = run.config.evaluation.model_copy(update={"max_sentences": 7})
    evaluate(run.run_dir, run.config.model_copy(update={"evaluation": settings}), "test", ["en-de"])
    assert set(small) < set(lines(folder / "en-de.src.txt"))


def test_zero_shot_needs_held_out_text(tiny_run: MakeRun) -> None:
    run = tiny_run()
    with pytest.raises(DataError, match=r"de-fr.tsv does not exist"):
        evaluate(run.run_dir, run.config, directions=["fr-de"])
    with pytest.raises(ConfigError, match=r"en-is cannot .* 'is' is not among .* \(en, de, fr\)"):
        evaluate(run.run_dir, run.config, directions=["en-is"])


def test_an_empty_direction_is_left_out_and_an_empty_split_an_error(
    tiny_run: MakeRun, tmp_path: Path, data_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny_run()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "tokenizer").symlink_to(data_folder / "tokenizer")
    full = (data_folder / "clean" / "test" / "en-de.tsv").read_text(encoding="utf-8")
    write_text(folder / "clean" / "test" / "en-de.tsv", full)
    write_text(folder / "clean" / "test" / "en-fr.tsv", "")
    config = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"folder": str(folder)})}
    )
    with caplog.at_level(logging.WARNING):
        result = evaluate(run.run_dir, config)
    assert [item.direction for item in result.directions] == ["en-de", "de-en"]
    assert "en-fr has no test sentences and is left out of the averages" in caplog.messages
    with pytest.raises(DataError, match=r"the test split in .* is empty for every direction asked"):
        evaluate(run.run_dir, config, directions=["en-fr"])


def test_no_checkpoint_is_said_before_anything_is_read(tiny_run: MakeRun) -> None:
    run = tiny_run()
    (run.run_dir / "checkpoints" / "step-00000100" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        evaluate(run.run_dir, run.config)


def test_a_damaged_result_is_said(tiny_run: MakeRun) -> None:
    run = tiny_run()
    write_text(run.run_dir / "evaluation" / "test" / "scores.json", '{"split": "test"}')
    with pytest.raises(DataError, match=r"(?s)not a valid.*step: required.*evaluate the run again"):
        load_result(run.run_dir)


# ------------------------------------------------------------------------------------- averages


def scores(value: float, tokenizer: str = "13a") -> Scores:
    signatures = {"bleu": f"tok:{tokenizer}", "chrf": "nw:0", "chrfpp": "nw:2"}
    return Scores(
        **{
            name: Score(metric=name, value=value + index, signature=signatures[name])  # type: ignore[arg-type]
            for index, name in enumerate(signatures)
        }
    )


def direction_result(
    direction: str, value: float, fresh: float | None = None, tokenizer: str = "13a"
) -> DirectionResult:
    return DirectionResult(
        direction=direction,
        sentences=10,
        near_duplicates=5 if fresh is not None else 10,
        decoding_s=1.0,
        model=scores(value, tokenizer),
        copy_source=scores(value / 2, tokenizer),
        model_no_near_duplicates=None if fresh is None else scores(fresh, tokenizer),
        copy_source_no_near_duplicates=None if fresh is None else scores(fresh / 2, tokenizer),
    )


RESULTS = (
    direction_result("en-de", 10.0, 8.0),
    direction_result("en-zh-Hans", 20.0, None, "zh"),
    direction_result("de-en", 30.0, 28.0),
    direction_result("zh-Hans-en", 50.0, 44.0),
    direction_result("de-zh-Hans", 2.0, 1.0, "zh"),
)


def test_macro_averages_by_hand() -> None:
    macro = macro_averages(RESULTS, "en")
    assert len(macro) == 3 * 3 * 4
    assert macro["macro_bleu_into_en"] == 40
    assert macro["macro_chrf_into_en"] == 41
    assert macro["macro_chrfpp_into_en"] == 42
    assert macro["macro_chrf_into_en_copy"] == 21
    assert macro["macro_chrf_into_en_no_near_duplicates"] == 37
    assert macro["macro_chrf_into_en_copy_no_near_duplicates"] == 19
    assert macro["macro_bleu_out_of_en"] == 15
    # One of the two has nothing but near-duplicates.
    assert macro["macro_bleu_out_of_en_no_near_duplicates"] == 8
    assert macro["macro_bleu_without_en"] == 2


def test_groups_without_directions_have_no_average() -> None:
    macro = macro_averages([direction_result("en-de", 1.0)], "en")
    assert set(macro) == {
        f"macro_{metric}_out_of_en{copy}"
        for metric in ("bleu", "chrf", "chrfpp")
        for copy in ("", "_copy")
    }


def result_of(directions: tuple[DirectionResult, ...], run: Any) -> EvaluationResult:
    measured = evaluate(run.run_dir, run.config, directions=["en-de"])
    macro = macro_averages(directions, "en")
    return measured.model_copy(update={"directions": directions, "macro": macro})


def test_table_and_signatures(tiny_run: MakeRun) -> None:
    result = result_of(RESULTS, tiny_run())
    rows = table_rows(result)
    assert rows[0] == {
        "direction": "en-de",
        "n": 10,
        "BLEU": 10.0,
        "BLEU copy": 5.0,
        "chrF": 11.0,
        "chrF copy": 6.0,
        "new n": 5,
        "new chrF": 9.0,
        "new copy": 5.0,
    }
    assert rows[1]["new chrF"] is None
    assert [row["direction"] for row in rows[5:]] == [
        "mean out of en",
        "mean into en",
        "mean without en",
    ]
    assert (rows[6]["BLEU"], rows[6]["chrF copy"], rows[6]["new chrF"]) == (40.0, 21.0, 37.0)
    assert all(list(row) == list(rows[0]) for row in rows)
    *signatures, speed = signature_lines(result)
    assert signatures == [
        "BLEU: tok:13a for en-de, de-en, zh-Hans-en",
        "chrF: nw:0",
        "chrF++: nw:2",
        "BLEU: tok:zh for en-zh-Hans, de-zh-Hans",
    ]
    assert speed.startswith("decoded ")
    assert "sentences/s on 1 cpu process with" in speed
    assert speed.endswith("beam 4, batches of 64 sentences")


def test_the_score_file_is_plain_json_with_signatures(tiny_run: MakeRun) -> None:
    run = tiny_run()
    evaluate(run.run_dir, run.config, directions=["en-de"])
    path = run.run_dir / "evaluation" / "test" / "scores.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    score = tree["directions"][0]["model"]["bleu"]
    assert score["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert tree["macro"]["macro_bleu_out_of_en"] == score["value"]
