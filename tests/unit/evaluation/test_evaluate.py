"""Evaluation: what is decoded, what is scored, what is averaged, and what is not done twice."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from data_pipeline.bitext import read_split
from hyperadapter.cli import cli
from hyperadapter.core.errors import CheckpointError, ConfigError, DataError
from hyperadapter.core.files import read_json, write_json, write_text
from hyperadapter.core.languages import Direction
from hyperadapter.evaluation.evaluate import (
    SUBSET_FILE,
    covers_all,
    evaluate,
    evaluate_test_set,
    load_result,
)
from hyperadapter.evaluation.pool import DecodingSpec, translate_all
from hyperadapter.evaluation.score import score_corpus
from hyperadapter.evaluation.test_sets import TestSet
from hyperadapter.evaluation.translate import Translator

MakeRun = Callable[..., Any]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Directions in the order in which they are decoded."""
    calls: list[str] = []
    translate = Translator.translate_n_best

    def spy(self: Translator, texts: Sequence[str], src: str, tgt: str, *a: Any, **k: Any) -> Any:
        calls.append(f"{src}-{tgt}")
        return translate(self, texts, src, tgt, *a, **k)

    monkeypatch.setattr(Translator, "translate_n_best", spy)
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
    result = evaluate(run.run_dir, run.config, split="valid")
    assert (result.split, result.step, result.pivot) == ("valid", 100, "en")
    assert result.settings == run.config.evaluation
    speed = result.speed
    assert (speed.sentences, speed.batch_sentences, speed.beam_size) == (48, 5, 2)
    assert speed.sentences_per_s == pytest.approx(48 / speed.seconds)
    assert (speed.device, speed.world_size) == ("cpu", 1)
    assert load_result(run.run_dir, "valid") == result


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
    spied = Translator.translate_n_best

    def stops(self: Translator, texts: Sequence[str], src: str, tgt: str, *a: Any, **k: Any) -> Any:
        if src == "fr":
            raise KeyboardInterrupt
        return spied(self, texts, src, tgt, *a, **k)

    monkeypatch.setattr(Translator, "translate_n_best", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run.run_dir, run.config)
    with pytest.raises(DataError, match=r"scores.json does not exist; run `hyperadapter evaluate`"):
        load_result(run.run_dir)
    monkeypatch.setattr(Translator, "translate_n_best", spied)
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


def test_directions_that_the_data_never_had_are_left_out(
    tiny_run: MakeRun, tmp_path: Path, data_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny_run()
    folder = tmp_path / "data"
    shutil.copytree(data_folder, folder)
    data = run.config.data.model_copy(update={"folder": str(folder)})
    config = run.config.model_copy(update={"data": data})
    counts = {"test": {"num_pairs": 12}}

    def only(*pairs: str) -> None:
        write_json(folder / "clean" / "manifest.json", {"splits": dict.fromkeys(pairs, counts)})

    (folder / "clean" / "test" / "en-fr.tsv").unlink()
    only("en-de")
    with caplog.at_level(logging.WARNING):
        result = evaluate(run.run_dir, config)
    assert [item.direction for item in result.directions] == ["en-de", "de-en"]
    assert load_result(run.run_dir) == result
    assert "en-fr, fr-en: the data were made without these directions" in caplog.text
    assert "--test-set" in caplog.text
    # Those that are named, and what is damaged or of something else, stay errors.
    with pytest.raises(DataError, match=r"en-fr\.tsv does not exist; .*--test-set"):
        evaluate(run.run_dir, config, directions=["en-de", "en-fr"])
    for pairs, missing in ((["en-de", "en-fr"], "en-fr"), (["en-nl"], "en-de")):
        only(*pairs)
        (folder / "clean" / "test" / f"{missing}.tsv").unlink(missing_ok=True)
        with pytest.raises(DataError, match=rf"{missing}\.tsv does not exist"):
            evaluate(run.run_dir, config)


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


def scores_file(run: Any, name: str = "scores.json") -> Path:
    path: Path = run.run_dir / "evaluation" / "test" / name
    return path


def with_evaluation(config: Any, **changes: Any) -> Any:
    settings = config.evaluation.model_copy(update=changes)
    return config.model_copy(update={"evaluation": settings})


# ------------------------------------------------------------------------------- some of directions


def test_some_directions_leave_the_scores_of_all_as_they_are(
    tiny_run: MakeRun, decoded: list[str]
) -> None:
    run = tiny_run()
    whole = evaluate(run.run_dir, run.config)
    before = scores_file(run).read_bytes()
    decoded.clear()
    part = evaluate(run.run_dir, run.config, directions=["fr-en", "en-de", "fr-en"])
    assert scores_file(run).read_bytes() == before
    assert decoded == []
    assert [item.direction for item in part.directions] == ["fr-en", "en-de"]
    assert set(part.directions) <= set(whole.directions)
    assert json.loads(scores_file(run, SUBSET_FILE).read_text(encoding="utf-8"))["step"] == 100
    everything = ["fr-en", "en-fr", "de-en", "en-de"]
    assert evaluate(run.run_dir, run.config, directions=everything).directions == (
        load_result(run.run_dir).directions
    )


def test_some_directions_are_no_evaluation_of_the_run(tiny_run: MakeRun) -> None:
    run = tiny_run()
    evaluate(run.run_dir, run.config, directions=["en-de"])
    with pytest.raises(DataError, match=r"scores\.json does not exist"):
        load_result(run.run_dir)


def test_all_directions_are_all_even_with_more(tiny_run: MakeRun) -> None:
    config = tiny_run().config
    everything = ["en-de", "de-en", "en-fr", "fr-en"]
    assert covers_all(config, [])
    assert covers_all(config, [*everything, "de-fr"])
    assert not covers_all(config, everything[1:])
    assert not covers_all(config, [*everything[1:], "de-fr"])


# --------------------------------------------------------------------------------- more than scores


def test_rates_groups_and_checksums_are_in_the_result(tiny_run: MakeRun) -> None:
    run = tiny_run(evaluation={"quality": {"min_letters": 1}})
    result = evaluate(run.run_dir, run.config)
    assert load_result(run.run_dir) == result
    item = result.directions[0]
    assert item.quality is not None
    assert item.quality_references is not None
    assert item.quality_references.off_target is not None
    assert item.quality_references.off_target.of == item.quality.copied.of == 12
    assert item.quality_references.overlong.count > 0  # the tiny run allows half of the source
    assert (item.train_pairs, item.zero_shot) == (None, False)
    assert list(result.groups) == ["all", "into_en", "out_of_en"]
    assert result.groups["into_en"].directions == ("de-en", "fr-en")
    assert result.unknown_languages == ()
    manifest = json.loads(scores_file(run, "en-de.json").read_text(encoding="utf-8"))
    assert item.hyp_sha256 == manifest["hyp_sha256"]


def test_more_metrics_do_not_decode_again(tiny_run: MakeRun, decoded: list[str]) -> None:
    run = tiny_run()
    first = evaluate(run.run_dir, run.config)
    decoded.clear()
    config = with_evaluation(run.config, metrics=("bleu", "chrf", "chrfpp", "ter"))
    second = evaluate(run.run_dir, config)
    assert decoded == []
    assert second.directions[0].model.ter is not None
    assert second.macro.keys() - first.macro.keys() >= {"macro_ter_into_en"}
    assert second.groups["all"].scores["ter"] > 0


def test_a_missing_model_of_a_metric_is_said_before_anything_is_decoded(
    tiny_run: MakeRun, decoded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path / "nowhere"))
    run = tiny_run(evaluation={"metrics": ["bleu", "chrf", "chrfpp", "spbleu"]})
    with pytest.raises(ConfigError, match=r"nowhere/models/flores200sacrebleuspm, which is not th"):
        evaluate(run.run_dir, run.config)
    assert decoded == []


def test_metrics_that_others_read_cannot_be_left_out(tiny_config: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"bleu, chrfpp cannot .*\[bleu, chrf, chrfpp, ter\]"):
        tiny_config(evaluation={"metrics": ["chrf", "ter"]})
    with pytest.raises(ConfigError, match="a metric is given twice"):
        tiny_config(evaluation={"metrics": ["bleu", "chrf", "chrfpp", "ter", "ter"]})


# ------------------------------------------------------------------------------------ own test sets


def own_set(direction: Direction, count: int = 3) -> TestSet:
    src = [f"Open the new file {n}" for n in range(count)]
    return TestSet("mine", direction, src, [text.upper() for text in src])


def test_a_test_set_is_scored_whole_in_a_folder_of_its_own(
    tiny_run: MakeRun, decoded: list[str]
) -> None:
    run = tiny_run(evaluation={"max_sentences": 2})
    test_set = own_set(Direction("en", "de"))
    result = evaluate_test_set(run.run_dir, run.config, test_set)
    folder = run.run_dir / "evaluation" / "mine"
    assert lines(folder / "en-de.src.txt") == test_set.src
    hyp = lines(folder / "en-de.hyp.txt")
    assert hyp == Translator.from_run(run.run_dir).translate(test_set.src, "en", "de")
    [item] = result.directions
    assert item.model == score_corpus(hyp, test_set.ref, "de")
    assert (item.sentences, item.near_duplicates, item.model_no_near_duplicates) == (3, None, None)
    assert not scores_file(run).exists()
    assert load_result(run.run_dir, "mine") == result
    decoded.clear()
    assert evaluate_test_set(run.run_dir, run.config, test_set) == result
    assert decoded == []


def test_directions_of_a_test_set_come_together(
    tiny_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny_run()
    evaluate_test_set(run.run_dir, run.config, own_set(Direction("en", "de")))
    second = evaluate_test_set(run.run_dir, run.config, own_set(Direction("de", "fr")))
    assert [item.direction for item in second.directions] == ["en-de", "de-fr"]
    assert [item.zero_shot for item in second.directions] == [False, True]
    assert second.groups["zero_shot"].directions == ("de-fr",)
    again = evaluate_test_set(run.run_dir, run.config, own_set(Direction("en", "de")))
    assert {item.direction: item.sentences for item in again.directions} == {"de-fr": 3, "en-de": 3}
    with pytest.raises(DataError, match="holds other sources: mine is the name of another test"):
        evaluate_test_set(run.run_dir, run.config, own_set(Direction("en", "de"), 4))
    run.save(step=200, seed=2)
    assert "are of other weights" not in caplog.text
    with caplog.at_level(logging.WARNING):
        newer = evaluate_test_set(run.run_dir, run.config, own_set(Direction("en", "fr")))
    assert [item.direction for item in newer.directions] == ["en-fr"]
    assert "the scores of de-fr, en-de in" in caplog.text
    assert "are of other weights, settings or devices" in caplog.text
    [kept] = (run.run_dir / "evaluation" / "mine").glob("scores.????????.json")
    assert [d["direction"] for d in read_json(kept)["directions"]] == ["de-fr", "en-de"]


def test_a_configuration_of_another_model_is_refused(tiny_run: MakeRun) -> None:
    run = tiny_run()
    evaluate(run.run_dir, run.config)
    adapter = run.config.model.adapter.model_copy(update={"placement": "parallel"})
    model = run.config.model.model_copy(update={"adapter": adapter})
    with pytest.raises(ConfigError, match=r"model\.adapter\.placement is 'parallel', but "):
        evaluate(run.run_dir, run.config.model_copy(update={"model": model}))
    tags = run.config.data.tags.model_copy(update={"encoder": "none"})
    data = run.config.data.model_copy(update={"tags": tags})
    with pytest.raises(ConfigError, match=r"data\.tags\.encoder is 'none', but "):
        evaluate(run.run_dir, run.config.model_copy(update={"data": data}))
    drier = run.config.model.model_copy(update={"dropout": 0.3})
    evaluate(run.run_dir, run.config.model_copy(update={"model": drier}))


def test_a_lost_source_file_comes_back(tiny_run: MakeRun) -> None:
    run = tiny_run()
    evaluate(run.run_dir, run.config)
    path = run.run_dir / "evaluation" / "test" / "en-de.src.txt"
    before = path.read_bytes()
    path.unlink()
    evaluate(run.run_dir, run.config)
    assert path.read_bytes() == before


def test_a_test_set_in_another_language_is_refused(tiny_run: MakeRun) -> None:
    run = tiny_run()
    with pytest.raises(ConfigError, match=r"en-is cannot be evaluated: 'is' is not among data\.la"):
        evaluate_test_set(run.run_dir, run.config, own_set(Direction("en", "is")))


# ----------------------------------------------------------------------------------------- command


@pytest.fixture
def command(tiny_run: MakeRun) -> Callable[..., Any]:
    """Runs `hyperadapter evaluate` on a tiny run without MLflow."""
    run = tiny_run()

    def invoke(*arguments: str | Path) -> Any:
        options = ["--config", run.run_dir / "config.yaml", "--set", "tracking.enabled=false"]
        return CliRunner().invoke(cli, ["evaluate", *map(str, [*options, *arguments])])

    return invoke


def test_the_command_writes_tables_and_figures(command: Callable[..., Any], tmp_path: Path) -> None:
    done = command("--csv", tmp_path / "x.csv")
    assert done.exit_code == 0, done.output
    for part in ("mean into en", "nrefs:1", "Rates, in %", "off-target", "Means over groups"):
        assert part in done.stdout
    plots = {path.name for path in (tmp_path / "run" / "plots").iterdir()}
    assert plots == {"directions_test.png", "matrix_test.png", "loss.png"}
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["direction"] for row in rows] == ["en-de", "de-en", "en-fr", "fr-en"]
    assert rows[0]["copied_of"] == "12"
    events = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8")
    assert '"test/en-de/copied"' in events
    assert '"test/macro/bleu"' in events
    assert '"test_group/all/chrf"' in events


def test_the_command_scores_some_directions(command: Callable[..., Any], tmp_path: Path) -> None:
    done = command("--directions", "en-de, fr-en", "--json")
    assert done.exit_code == 0, done.output
    tree = json.loads(done.stdout)
    assert [item["direction"] for item in tree["directions"]] == ["en-de", "fr-en"]
    events = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8")
    assert '"test/en-de/bleu"' in events
    assert "test/macro" not in events
    assert not (tmp_path / "run" / "evaluation" / "test" / "scores.json").exists()


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_the_device_is_the_one_asked_for(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    devices: list[str] = []

    def spy(spec: DecodingSpec, *rest: Any) -> Any:
        devices.append(spec.device)
        return translate_all(spec._replace(device="cpu"), *rest)

    monkeypatch.setattr("hyperadapter.evaluation.evaluate.translate_all", spy)
    run = tiny_run()
    result = evaluate(run.run_dir, run.config, directions=["en-de"], device=device)
    assert devices == [device]
    assert result.speed.device == device.removesuffix(":1")


def test_the_command_says_how_many_processes(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hyperadapter.evaluation.evaluate.translate_all",
        lambda spec, chunks, processes: translate_all(spec, chunks, processes - 2),
    )
    one = ("--set", "evaluation.batch_sentences=1")  # chunks of 4
    done = command("--directions", "en-de", "--json", "--processes", "3", *one)
    assert done.exit_code == 0, done.output
    tree = json.loads(done.stdout)
    assert (tree["speed"]["world_size"], tree["settings"]["num_processes"]) == (3, 1)


def test_the_command_scores_a_test_set(command: Callable[..., Any], tmp_path: Path) -> None:
    write_text(tmp_path / "own.tsv", "Open the file\tÖffne das Dokument\n")
    done = command("--test-set", tmp_path / "own.tsv", "--direction", "en-de")
    assert done.exit_code == 0, done.output
    assert "Scores of the own split" in done.stdout
    assert "new chrF" not in done.stdout
    assert (tmp_path / "run" / "evaluation" / "own" / "scores.json").is_file()
    events = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8")
    assert '"test_set/own/en-de/bleu"' in events
    assert '"test/' not in events


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--test-set", "x.tsv"], "--direction is missing"),
        (["--direction", "en-de"], "--test-set is missing"),
        (["--name", "x"], "--test-set is missing"),
        (
            ["--test-set", "x.tsv", "--direction", "en-de", "--split", "test"],
            "--split and --directions are not for a --test-set",
        ),
    ],
)
def test_options_that_do_not_go_together(
    command: Callable[..., Any], arguments: list[str], message: str
) -> None:
    done = command(*arguments)
    assert done.exit_code == 2
    assert message in done.output
