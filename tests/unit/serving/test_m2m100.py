"""A folded direction is the same model in transformers: ids, scores and translations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from transformers import M2M100ForConditionalGeneration, M2M100Tokenizer

from data_pipeline.ragged import Ragged
from data_pipeline.stream.batching import MicroBatch, build_micro_batch
from hyperadapter.checkpoint.huggingface import import_huggingface
from hyperadapter.checkpoint.weights import load_weights
from hyperadapter.cli import cli
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.languages import parse_direction
from hyperadapter.evaluation.translate import Translator
from hyperadapter.model.batch import Batch
from hyperadapter.serving.m2m100 import export_m2m100

MakeRun = Callable[..., Any]
HYPER = {"kind": "hyper", "bottleneck_dim": 4, "hyper_network": {"hyper_dim": 8}}
PARALLEL = HYPER | {"placement": "parallel"}
DENSE = {"kind": "none"}
TEXTS = ["Open the file", "Save the last image now", "page", "Close the old menu", "Ω"]
TAGS: list[dict[str, Any]] = [
    {},
    {"encoder": "target", "decoder": "none"},
    {"encoder": "target", "decoder": "source", "decoder_start": True},
    {"encoder": "source", "decoder": "target", "decoder_start": True},
]


def export(run: Any, tmp_path: Path, direction: str = "de-en") -> Path:
    out = tmp_path / "folded"
    export_m2m100(run.run_dir, out, directions=[direction])
    return out


def table(translator: Translator, folder: Path) -> dict[int, int]:
    """Returns their id of each of our pieces."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    return {number: vocabulary[piece] for number, piece in enumerate(translator.tokenizer.pieces())}


def our_batch(translator: Translator, direction: str) -> MicroBatch:
    """Builds sentences of very different lengths with targets."""
    state = translator.prepare(parse_direction(direction))
    rows = Ragged.from_lengths(*translator.tokenizer.encode_ragged(TEXTS))
    back = Ragged.from_lengths(*translator.tokenizer.encode_ragged(TEXTS[::-1]))
    return build_micro_batch(state.layout, np.zeros(len(TEXTS), np.int64), rows, back)


@torch.no_grad()
def our_scores(translator: Translator, mb: MicroBatch, direction: str) -> Tensor:
    batch = Batch.from_micro_batch(mb)
    model, adapters = translator.model, translator.prepare(parse_direction(direction)).adapters
    memory = model.encode(batch.src_N, batch.src, adapters)
    hidden = model.decode(batch.tgt_in_M, batch.tgt, memory, batch.src, adapters)
    return model.logits(hidden).view(*mb.tgt_in_BT.shape, -1)


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("adapter", [PARALLEL, HYPER, HYPER | {"encoder_layers": []}, DENSE])
def test_scores_of_transformers_are_ours(
    tiny_run: MakeRun, tmp_path: Path, adapter: dict[str, Any], tags: dict[str, Any]
) -> None:
    if adapter["kind"] == "none" and tags.get("decoder") == "none":
        tags = {"encoder": "target"}
    direction = "de-en"
    run = tiny_run(adapter=adapter, data={"tags": tags})
    translator = Translator.from_run(run.run_dir)
    folder = export(run, tmp_path, direction)
    theirs = M2M100ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = M2M100Tokenizer.from_pretrained(folder)
    pieces = table(translator, folder)
    mb = our_batch(translator, direction)
    src = tokenizer(TEXTS, return_tensors="pt", padding=True)
    # Their tokenizer makes our sources: the tag's row lies where their language token is.
    assert src.input_ids[:, 0].tolist() == [tokenizer.get_lang_id("de")] * len(TEXTS)
    ours = [[pieces[int(number)] for number in row] for row in mb.src_BS[:, 1:]]
    assert src.input_ids[:, 1:].tolist() == ours
    tag = {id_: tokenizer.get_lang_id("en") for id_ in range(310, 313)}
    tgt_in = torch.tensor([[(pieces | tag)[int(n)] for n in row] for row in mb.tgt_in_BT])
    with torch.no_grad():
        scores = theirs(**src, decoder_input_ids=tgt_in).logits
    real = torch.from_numpy(mb.has_target_BT)
    ours_scores = our_scores(translator, mb, direction)
    expected = scores[:, :, [pieces[n] for n in range(310)]]
    assert ours_scores[real].std() > 0.1
    torch.testing.assert_close(ours_scores[real], expected[real], rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("adapter", [PARALLEL, HYPER])
def test_transformers_translates_the_same(
    tiny_run: MakeRun, tmp_path: Path, adapter: dict[str, Any], tags: dict[str, Any]
) -> None:
    """Greedily: the two searches with beams differ in when they stop."""
    run = tiny_run(adapter=adapter, data={"tags": tags}, evaluation={"beam_size": 1})
    translator = Translator.from_run(run.run_dir)
    folder = export(run, tmp_path)
    model = M2M100ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = M2M100Tokenizer.from_pretrained(folder)
    settings = model.generation_config
    # Neither special pieces nor language tokens, but for the one that must come first.
    never = {0, 1, 3, *range(310, 418)} - {settings.forced_bos_token_id}
    assert set(settings.suppress_tokens) == never
    found = []
    for text in TEXTS:  # each with the longest length that ours has
        src = tokenizer([text], return_tensors="pt")
        longest = int(src.input_ids.size(1) * 0.5) + 3
        forced = int(settings.forced_bos_token_id is not None)
        out = model.generate(**src, max_new_tokens=longest + forced)
        found += tokenizer.batch_decode(out, skip_special_tokens=True)
    expected = translator.translate(TEXTS, "de", "en")
    assert [" ".join(text.split()) for text in found] == expected
    assert any(expected)


def test_the_import_gives_the_folded_weights_back(tiny_run: MakeRun, tmp_path: Path) -> None:
    tags = {"encoder": "source", "decoder": "target", "decoder_start": True}
    run = tiny_run(adapter={"kind": "none"}, data={"tags": tags})
    folder = export(run, tmp_path)
    import_huggingface(folder, tmp_path / "back", ["de", "en"])
    ours = Translator.from_run(run.run_dir).model.state_dict()
    back, _ = load_weights(tmp_path / "back" / "weights.safetensors")
    assert set(back) == set(ours)
    for name in set(ours) - {"embedding.weight"}:
        assert torch.equal(back[name], ours[name])
    rows = [*range(310), 311, 310]
    assert torch.equal(back["embedding.weight"], ours["embedding.weight"][rows])


def test_what_m2m100_cannot_express(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_run(adapter=HYPER)
    out = tmp_path / "folded"
    for wanted in (None, ["en-de", "de-en"]):
        with pytest.raises(ConfigError, match=r"adapters of one direction .* --directions"):
            export_m2m100(run.run_dir, out, directions=wanted)
    run = tiny_run(adapter=PARALLEL, data={"tags": {"encoder": "none"}})
    with pytest.raises(ConfigError, match="always opens a source with a language"):
        export_m2m100(run.run_dir, out, directions=["en-de"])
    out.mkdir()
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        export_m2m100(run.run_dir, out, directions=["en-de"])


def test_a_language_without_a_token(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperadapter.checkpoint import huggingface_vocabulary

    monkeypatch.setitem(huggingface_vocabulary.LANGUAGE_CODES, "m2m100", "en is")
    run = tiny_run(adapter=PARALLEL)
    with pytest.raises(ConfigError, match=r"no token for de; its languages are en, is\. "):
        export_m2m100(run.run_dir, tmp_path / "folded", directions=["en-de"])
    assert not (tmp_path / "folded").exists()


def test_the_command(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_run(adapter=PARALLEL)
    arguments = ["export", "--run", str(run.run_dir), "--out", str(tmp_path / "x")]
    arguments += ["--format", "m2m100", "--directions", "en-fr"]
    done = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert (report["direction"], report["num_layers"], report["ffn_dim"]) == ("en-fr", 3, 20)
    assert report["vocab_size"] == 310 + 100 + 8
    done = CliRunner().invoke(cli, [*arguments, "--dtype", "bf16"])
    assert done.exit_code == 2
    assert "--dtype is for --format bundle, not m2m100" in done.stderr
