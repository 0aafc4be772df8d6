"""Swapped adapters: exact losses, a dialect that costs least, and what is refused."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from data_pipeline.shards.manifest import read_manifest, write_manifest
from data_pipeline.stream.streams import ValidStream
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.analysis import swap as swap_module
from hyperadapter.analysis.relatedness import Options
from hyperadapter.analysis.representations import Side, direction_of
from hyperadapter.analysis.swap import SwapOptions, analyse_swap, swap_losses
from hyperadapter.cli import cli
from hyperadapter.core.errors import ConfigError, DataError, LanguageError
from hyperadapter.core.events import EVENTS_FILE
from hyperadapter.core.files import write_text
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import Seq2Seq
from tests.unit.analysis.conftest import LANGUAGES, WORDS, make_config, make_model, save_run

Trained = Callable[[str], tuple[Path, Seq2Seq]]
QUICK = Options(permutations=199)
OTHERS = LANGUAGES[1:]


@pytest.fixture
def run_of(trained: Trained, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a trained run, so that a test may write to it."""
    return lambda kind: Path(shutil.copytree(trained(kind)[0], tmp_path / kind))


def batches_of(data_folder: Path, side: Side) -> dict[str, list[Batch]]:
    names = [str(direction_of(code, side, "en")) for code in OTHERS]
    data = make_config(Path("run"), data={"directions": names}).data
    stream = ValidStream(data_folder / "shards", data, micro_batch_tokens=200, max_sentences=20)
    found: dict[str, list[Batch]] = {code: [] for code in OTHERS}
    for item in stream:
        batch = Batch.from_micro_batch(item.micro_batch)
        found[OTHERS[int(item.micro_batch.direction_P[0])]].append(batch)
    return found


@pytest.mark.parametrize("kind", ["hyper", "language"])
@pytest.mark.parametrize("side", ["src", "tgt"])
def test_only_the_numbers_that_adapters_read_are_replaced(
    trained: Trained, data_folder: Path, kind: str, side: Side
) -> None:
    model = trained(kind)[1]
    batches = batches_of(data_folder, side)
    found = swap_losses(model, batches, side, "en")
    field = f"{side}_language_P"
    for row, code in enumerate(OTHERS):
        assert len(batches[code]) > 1
        for column, other in enumerate(OTHERS):
            number = torch.tensor([LANGUAGES.index(other)])
            nll = sum(model(replace(b, **{field: number})).nll.item() for b in batches[code])
            tokens = sum(batch.target_K.numel() for batch in batches[code])
            assert found[row, column] == pytest.approx(nll / tokens, rel=1e-5)


@pytest.mark.parametrize("kind", ["hyper", "language"])
def test_a_dialects_adapters_cost_least(run_of: Callable[[str], Path], kind: str) -> None:
    report = analyse_swap(run_of(kind), SwapOptions("tgt", max_sentences=20), QUICK)
    assert report["cheapest"]["de"][0][0] == "nl"
    assert report["cheapest"]["nl"][0][0] == "de"
    assert report["languages"] == list(OTHERS)
    costs = np.array(report["cost_nats_per_token"])
    losses = np.array(report["loss_nats_per_token"])
    np.testing.assert_allclose(costs, losses - np.diag(losses)[:, None])
    assert (costs.diagonal() == 0).all()
    de, nl = OTHERS.index("de"), OTHERS.index("nl")
    assert max(abs(costs[de, nl]), abs(costs[nl, de])) < 0.1
    strangers = ~np.eye(5, dtype=bool)
    strangers[[de, nl], [nl, de]] = False
    assert costs[strangers].min() > 1
    assert report["mean_cost"] == pytest.approx(costs.sum() / 20)
    for name, found in report["distances"].items():
        assert found["r"] > 0.3, name
    assert report["distances"]["decoder_cosine"]["cheapest_is_nearest"] >= 0.4


def test_every_file_is_written_and_told_to_the_tracker(run_of: Callable[[str], Path]) -> None:
    run_dir = run_of("hyper")
    report = analyse_swap(run_dir, SwapOptions("src", ("es", "de", "nl"), 7, bleu=True), QUICK)
    folder = run_dir / "analysis" / "swap"
    assert {path.name for path in folder.iterdir()} == {
        "src.json",
        "src.csv",
        "src_loss.png",
        "src_chrf.png",
    }
    assert json.loads((folder / "src.json").read_text()) == json.loads(json.dumps(report))
    with (folder / "src.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 9
    [row] = [row for row in rows if (row["direction"], row["adapters_of"]) == ("es-en", "nl")]
    assert float(row["loss"]) == report["loss_nats_per_token"][0][2]
    assert float(row["cost"]) == report["cost_nats_per_token"][0][2]
    assert float(row["chrf"]) == report["chrf"][0][2]
    assert (row["family"], row["family_of_adapters"]) == ("romance", "germanic")
    assert len(report["bleu_signatures"]) == 1
    assert "encoder_cka" in report["distances"]
    assert "decoder_cka" not in report["distances"]
    events = [json.loads(line) for line in (run_dir / EVENTS_FILE).read_text().splitlines()]
    logged = [event["metrics"] for event in events if "metrics" in event]
    assert logged[0]["analysis/swap/src/mean_cost"] == report["mean_cost"]
    assert len([event for event in events if event.get("folder") == "analysis/swap"]) == 4


def test_both_ways_of_a_pair_count_alike() -> None:
    languages = ("de", "nl", "es", "fr")
    losses = np.random.default_rng(4).uniform(1, 3, (4, 4))
    one, other = (
        swap_module._describe(np.ascontiguousarray(matrix), languages, [], QUICK)
        for matrix in (losses - losses.diagonal()[:, None], (losses - losses.diagonal()[:, None]).T)
    )
    assert one["family"] == pytest.approx(other["family"])
    costs = np.array(one["cost_nats_per_token"])
    within = (costs[0, 1] + costs[1, 0] + costs[2, 3] + costs[3, 2]) / 4
    between = (costs[:2, 2:].mean() + costs[2:, :2].mean()) / 2
    assert one["family"]["gap"] == pytest.approx(between - within)


def test_p_values_come_from_the_seed() -> None:
    losses = np.random.default_rng(4).uniform(1, 3, (6, 6))
    languages = ("de", "nl", "es", "fr", "uk", "ru")
    values = [
        swap_module._describe(losses, languages, [], QUICK._replace(seed=seed))["family"]["p"]
        for seed in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]


def test_tags_stay_those_of_the_text(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap_module, "plot_matrix", lambda *arguments: Path("x.png"))
    # Families' adapters do not tell their languages apart, so a tag does.
    config = make_config(tmp_path / "run", "family", data={"folder": str(data_folder)})
    model = make_model(config)
    save_run(config, model, Tokenizer.load(data_folder / "tokenizer").fingerprint)
    seen: list[set[int]] = []
    search = swap_module.beam_search

    def spy(model: Seq2Seq, prompts: Batch, *rest: Any) -> Any:
        seen.append(set(prompts.tgt_in_M.tolist()))
        return search(model, prompts, *rest)

    monkeypatch.setattr(swap_module, "beam_search", spy)
    analyse_swap(tmp_path / "run", SwapOptions("tgt", ("de", "uk"), 3, bleu=True), QUICK)
    tags = [{300 + LANGUAGES.index(code)} for code in ("de", "uk")]
    assert seen == tags * 2


@pytest.mark.parametrize("side", ["src", "tgt"])
def test_references_are_in_the_target_language(
    run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, side: Side
) -> None:
    monkeypatch.setattr(swap_module, "plot_matrix", lambda *arguments: Path("x.png"))
    seen: list[tuple[str, set[str]]] = []
    score = swap_module.score_corpus

    def spy(lines: list[str], references: list[str], tgt: str) -> Any:
        assert len(lines) == len(references) == 3
        seen.append((tgt, set(" ".join(references).split())))
        return score(lines, references, tgt)

    monkeypatch.setattr(swap_module, "score_corpus", spy)
    analyse_swap(run_of("hyper"), SwapOptions(side, ("de", "uk"), 3, bleu=True), QUICK)
    assert [tgt for tgt, _ in seen] == (["en"] * 4 if side == "src" else ["de", "uk"] * 2)
    assert all(words <= set(WORDS[tgt]) for tgt, words in seen)


def test_translations_follow_the_adapters(run_of: Callable[[str], Path]) -> None:
    options = SwapOptions("tgt", ("de", "nl", "uk"), 10, bleu=True)
    chrf = np.array(analyse_swap(run_of("language"), options, QUICK)["chrf"])
    # The adapters of uk make it write uk's words, whatever is asked for.
    assert chrf[0, 1] > chrf[0, 2] + 10
    assert chrf[2, 2] > chrf[2, 0] + 10


def test_adapters_are_generated_once_for_a_language(
    trained: Trained, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained("hyper")[1]
    calls = []
    generate = model.adapter_weights
    monkeypatch.setattr(
        model, "adapter_weights", lambda *keys: calls.append(keys) or generate(*keys)
    )
    swap_losses(model, batches_of(data_folder, "tgt"), "tgt", "en")
    assert len(calls) == len(OTHERS)


def test_what_cannot_be_swapped(
    run_of: Callable[[str], Path], data_folder: Path, tmp_path: Path
) -> None:
    run_dir = run_of("hyper")
    with pytest.raises(LanguageError, match=r"not trained on en-pl, so 'pl' has no adapters"):
        analyse_swap(run_dir, SwapOptions(languages=("de", "pl")), QUICK)
    with pytest.raises(DataError, match=r"there for de of the languages de, and a swap needs two"):
        analyse_swap(run_dir, SwapOptions(languages=("de",)), QUICK)
    config = make_config(tmp_path / "dense", "none", data={"folder": str(data_folder)})
    save_run(config, make_model(config))
    with pytest.raises(ConfigError, match=r"adapter\.kind is 'none'"):
        analyse_swap(tmp_path / "dense", SwapOptions(), QUICK)
    config = make_config(tmp_path / "other", data={"folder": str(data_folder)})
    save_run(config, make_model(config), "another")
    with pytest.raises(DataError, match=r"but the weights were trained with another; set data\."):
        analyse_swap(tmp_path / "other", SwapOptions(), QUICK)


def test_languages_that_the_data_never_had_are_left_out(
    run_of: Callable[[str], Path],
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(swap_module, "plot_matrix", lambda *arguments: Path("x.png"))
    run_dir, folder = run_of("hyper"), tmp_path / "data"
    shutil.copytree(data_folder, folder)
    write_text(
        run_dir / "config.yaml",
        (run_dir / "config.yaml").read_text().replace(str(data_folder), str(folder)),
    )
    path = folder / "shards" / "valid" / "manifest.json"
    manifest = read_manifest(path.parent)

    def keep(*codes: str) -> None:
        pairs = tuple(pair for pair in manifest.pairs if pair.b in codes)
        write_manifest(path.parent, manifest.model_copy(update={"pairs": pairs}))

    keep("de", "nl", "uk")
    with caplog.at_level(logging.WARNING):
        report = analyse_swap(run_dir, SwapOptions(), QUICK)
    assert report["languages"] == ["de", "nl", "uk"]
    assert "shards/valid has no text of es, fr, which is left out" in caplog.text
    message = r"no text of fr with en, .* out of --languages \(there is text of de, nl, uk\)"
    with pytest.raises(DataError, match=message):
        analyse_swap(run_dir, SwapOptions(languages=("de", "fr")), QUICK)
    keep()
    with pytest.raises(DataError, match=r"no text of de, nl, es, fr, uk .*text of none\), or set"):
        analyse_swap(run_dir, SwapOptions(), QUICK)
    path.unlink()
    with pytest.raises(DataError, match="holds no shards"):
        analyse_swap(run_dir, SwapOptions(), QUICK)


def test_two_languages_are_enough_but_correlate_with_nothing(
    run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap_module, "plot_matrix", lambda *arguments: Path("x.png"))
    report = analyse_swap(run_of("language"), SwapOptions("tgt", ("de", "uk")), QUICK)
    assert np.shape(report["loss_nats_per_token"]) == (2, 2)
    assert report["family"] == {"gap": None, "r": None, "p": None}


def test_the_command_takes_any_spelling(
    run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap_module, "plot_matrix", lambda *arguments: Path("x.png"))
    words = ["analyse", "swap", "--run", str(run_of("hyper")), "--permutations", "99"]
    done = CliRunner().invoke(
        cli, [*words, "--direction-side", "src", "--languages", "de_DE,nl, es", "--json"]
    )
    report = json.loads(done.stdout)
    assert (report["side"], report["languages"]) == ("src", ["de", "nl", "es"])
    done = CliRunner().invoke(cli, words)
    assert "tiny, step 7, tgt: others' adapters, nats per token" in done.stdout
    assert "costs correlate with distances" in done.stdout
    done = CliRunner().invoke(cli, [*words, "--languages", "de,xq"])
    assert isinstance(done.exception, LanguageError)
    assert "unknown language code 'xq'" in str(done.exception)
