"""What an export writes: sizes, precision, sharing, card, and what it refuses."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import hyperadapter
from hyperadapter.checkpoint.weights import load_weights
from hyperadapter.cli import cli
from hyperadapter.core.errors import CheckpointError, ConfigError, LanguageError
from hyperadapter.core.files import sha256_file, write_json
from hyperadapter.serving import export
from hyperadapter.serving.export import export_bundle

MakeBundle = Callable[..., tuple[Any, Path]]
TEXTS = ["Open the file", "Save the last image now", "page"]


def names_and_types(path: Path) -> tuple[set[str], set[torch.dtype]]:
    tensors, _ = load_weights(path)
    return set(tensors), {tensor.dtype for tensor in tensors.values()}


def test_the_hyper_network_stays_behind(make_bundle: MakeBundle) -> None:
    _, bundle = make_bundle()
    names, types = names_and_types(bundle / "model.safetensors")
    assert sum("embedding" in name for name in names) == 1
    assert not any(name.startswith("adapters") for name in names)
    assert names_and_types(bundle / "adapters.safetensors")[0] == set(
        ("down", "down_bias", "up", "up_bias")
    )
    assert types == {torch.float32}
    assert (bundle / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_adapters_are_stored_once(make_bundle: MakeBundle) -> None:
    """Three languages in three layers, each with one adapter, for all six directions."""
    directions = [f"{a}-{b}" for a in ("en", "de", "fr") for b in ("en", "de", "fr") if a != b]
    run, bundle = make_bundle("language", directions=directions)
    down = load_weights(bundle / "adapters.safetensors")[0]["down"]
    assert down.shape == (9, 4, 8)
    assert len(torch.unique(down.flatten(1), dim=0)) == 9
    model = hyperadapter.load(bundle, "cpu")
    assert model.directions == tuple(directions)
    assert model.translate(TEXTS, "de", "fr") == hyperadapter.load(run.run_dir, "cpu").translate(
        TEXTS, "de", "fr"
    )


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision_of_what_is_stored(
    make_bundle: MakeBundle, dtype: str, expected: torch.dtype
) -> None:
    _, bundle = make_bundle(dtype=dtype)
    for name in ("model.safetensors", "adapters.safetensors"):
        assert names_and_types(bundle / name)[1] == {expected}
    model = hyperadapter.load(bundle, "cpu")._translator.model
    stored = load_weights(bundle / "model.safetensors")[0]
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())
    assert len(hyperadapter.load(bundle, "cpu").translate(TEXTS, "en", "de")) == 3


def test_numbers_too_large_for_half_precision() -> None:
    tensors = {"w": torch.tensor([1.0, -7e4])}
    with pytest.raises(CheckpointError, match=r"w holds numbers up to 70000, which fp16 cannot"):
        export._cast(tensors, "fp16")
    assert export._cast(tensors, "bf16")["w"].isfinite().all()
    with pytest.raises(CheckpointError, match="another checkpoint if they are not finite"):
        export._cast({"w": torch.tensor([torch.nan])}, "fp32")


def test_the_report_adds_up(make_bundle: MakeBundle, tmp_path: Path) -> None:
    run, bundle = make_bundle()
    report = export_bundle(run.run_dir, bundle)
    files = [path for path in bundle.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files if path.name != "manifest.json")
    inner = (bundle / "tokenizer" / "manifest.json").stat().st_size
    assert report.bundle_bytes == total + inner
    weights = run.run_dir / "checkpoints" / "step-00000100" / "weights.safetensors"
    whole = sum(tensor.numel() * 4 for tensor in load_weights(weights)[0].values())
    assert report.main_network_bytes + report.left_out_bytes == whole
    assert report.adapters_bytes == 4 * 3 * 4 * (2 * 4 * 8 + 4 + 8)
    without = report.bundle_bytes - report.adapters_bytes + report.left_out_bytes
    assert report.rows()[-2:] == [
        ("bundle", report.bundle_bytes),
        ("with the hyper-network, or stored adapters, instead", without),
    ]


def test_an_older_bundle_is_replaced_and_nothing_else(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    run, bundle = make_bundle()
    export_bundle(run.run_dir, bundle, directions=["fr-en"])
    assert hyperadapter.load(bundle, "cpu").directions == ("fr-en",)
    before = (run.run_dir / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="exists and is no earlier bundle; name a new folder"):
        export_bundle(run.run_dir, run.run_dir)
    assert (run.run_dir / "config.yaml").read_bytes() == before


def test_a_failure_leaves_nothing(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = make_bundle()

    def fail(*arguments: Any) -> str:
        raise OSError("cut")

    monkeypatch.setattr(export, "write_card", fail)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="cut"):
        export_bundle(run.run_dir, tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before


def test_directions_that_cannot_be_exported(make_bundle: MakeBundle, tmp_path: Path) -> None:
    run, _ = make_bundle("direction")
    for wanted, kind, message in (
        (["de-fr"], LanguageError, "not trained to translate de-fr"),
        (["en-is"], LanguageError, "this run has no language 'is'"),
        (["en"], LanguageError, "'en' is not a direction"),
        (["en-de", "en-de"], ConfigError, "--directions: en-de is given twice"),
        ([], ConfigError, "--directions: no direction is named"),
    ):
        with pytest.raises(kind, match=message):
            export_bundle(run.run_dir, tmp_path / "new", directions=wanted)
    assert not (tmp_path / "new").exists()


def score(metric: str, value: float) -> dict[str, Any]:
    return {"metric": metric, "value": value, "signature": f"signature of {metric}"}


def evaluate(run: Any, weights_sha256: str) -> None:
    """Writes the result of an evaluation of en-de."""
    values = (("bleu", 12.34), ("chrf", 45.67), ("chrfpp", 43.21))
    scores = {metric: score(metric, value) for metric, value in values}
    row = {"direction": "en-de", "sentences": 12, "near_duplicates": 4, "decoding_s": 1.0,
           "model": scores, "copy_source": scores, "model_no_near_duplicates": None,
           "copy_source_no_near_duplicates": None}  # fmt: skip
    speed = {"sentences": 12, "seconds": 1.0, "sentences_per_s": 12.0, "batch_sentences": 64,
             "beam_size": 4, "device": "cpu", "threads": 1}  # fmt: skip
    tree = {"split": "test", "step": 100, "fingerprint": "f", "weights_sha256": weights_sha256,
            "pivot": "en", "directions": [row], "macro": {}, "speed": speed,
            "settings": {"beam_size": 4, "length_penalty": 0.6, "max_sentences": 7}}  # fmt: skip
    write_json(run.run_dir / "evaluation" / "test" / "scores.json", tree)


def test_the_card(make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture) -> None:
    run, bundle = make_bundle()
    card = (bundle / "README.md").read_text()
    assert "English (`en`), German (`de`), French (`fr`)" in card
    assert "The run has not been evaluated." in card
    assert "\nLicence: (fill in" in card
    for name in ("model.safetensors", "adapters.safetensors"):
        assert f"{sha256_file(bundle / name)}  {name}" in card
    weights = run.run_dir / "checkpoints" / "step-00000100" / "weights.safetensors"
    evaluate(run, sha256_file(weights))
    export_bundle(run.run_dir, bundle)
    card = (bundle / "README.md").read_text()
    assert "| en-de | 12 | 12.3 | 45.7 | 43.2 |" in card
    assert "- bleu: `signature of bleu`" in card
    assert "up to 7 sentences of a direction, beam 4, length penalty 0.6. sacreBLEU's" in card
    assert "scores are of the run" not in card
    export_bundle(run.run_dir, bundle, dtype="bf16")
    assert (
        "The scores are of the run in fp32, not of bf16, whose outputs may differ."
        in (bundle / "README.md").read_text()
    )
    evaluate(run, "of others")
    with caplog.at_level(logging.WARNING):
        export_bundle(run.run_dir, bundle)
    assert "This checkpoint has not been evaluated." in (bundle / "README.md").read_text()
    assert "evaluate this checkpoint first" in caplog.text


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", "A pre-LayerNorm dense Transformer, step"),
        ("hyper", "with its adapters made, step"),
    ],
)
def test_what_the_card_calls_the_model(make_bundle: MakeBundle, kind: str, expected: str) -> None:
    _, bundle = make_bundle(kind)
    assert expected in (bundle / "README.md").read_text()


def test_the_command(make_bundle: MakeBundle, tmp_path: Path) -> None:
    run, _ = make_bundle()
    out = tmp_path / "out"
    arguments = [
        "export",
        "--run",
        str(run.run_dir),
        "--out",
        str(out),
        "--directions",
        "en-de, de-en",
    ]
    done = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert (report["directions"], report["stored_adapters"]) == (2, 6)
    done = CliRunner().invoke(cli, [*arguments, "--checkpoint", "100"], catch_exceptions=False)
    assert "adapters of 2 directions" in done.stdout
    assert "with the hyper-network, or stored adapters, instead" in done.stdout
    assert hyperadapter.load(out, "cpu").directions == ("en-de", "de-en")


def test_what_people_wrote_is_not_replaced(make_bundle: MakeBundle) -> None:
    run, bundle = make_bundle("hyper")
    export_bundle(run.run_dir, bundle)  # an untouched one may be
    card = bundle / "README.md"
    card.write_text(card.read_text() + "Licence: mine\n")
    (bundle / "LICENSE").write_text("mine")
    with pytest.raises(ConfigError, match=r"into it since: LICENSE, README\.md; move that"):
        export_bundle(run.run_dir, bundle)
    assert card.read_text().endswith("Licence: mine\n")
