"""A bundle translates as its run does, and without the packages of training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import hyperadapter
from hyperadapter.cli import cli
from hyperadapter.config import SamplingConfig
from hyperadapter.core.errors import CheckpointError, ConfigError, LanguageError
from hyperadapter.evaluation import translate
from hyperadapter.evaluation.search import Hypothesis
from hyperadapter.evaluation.translate import Translator
from hyperadapter.serving import loader
from hyperadapter.serving.export import export_bundle

MakeBundle = Callable[..., tuple[Any, Path]]
TEXTS = ["Open the file", "", "Save the last image now", "page", "   ", "Close the old menu"]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Hypothesis]:
    """All hypotheses that searches find."""
    kept: list[Hypothesis] = []
    search = translate.search_n_best

    def keep(*arguments: Any, **options: Any) -> list[list[Hypothesis]]:
        hypotheses = search(*arguments, **options)
        kept.extend(best for [best] in hypotheses)
        return hypotheses

    monkeypatch.setattr(translate, "search_n_best", keep)
    return kept


@pytest.mark.parametrize(
    "kind", ["none", "hyper", "shared norm", "some layers", "language", "family", "direction"]
)
def test_a_bundle_translates_as_its_run(
    make_bundle: MakeBundle, found: list[Hypothesis], kind: str
) -> None:
    run, bundle = make_bundle(kind)
    ours, theirs = hyperadapter.load(bundle, "cpu"), Translator.from_run(run.run_dir)
    translations = set()
    for direction in run.config.data.resolved_directions():
        found.clear()
        ours_text = ours.translate(TEXTS, src=direction.src, tgt=direction.tgt)
        scores = [hypothesis.score for hypothesis in found]
        found.clear()
        assert ours_text == theirs.translate(TEXTS, *direction)
        expected = [hypothesis.score for hypothesis in found]
        torch.testing.assert_close(
            torch.tensor(scores), torch.tensor(expected), rtol=0.0, atol=1e-5
        )
        translations.add(tuple(ours_text))
    assert len(translations) > 1


@pytest.mark.parametrize(
    "tags",
    [
        {"encoder": "target", "decoder": "none"},
        {"encoder": "none", "decoder": "target", "decoder_start": True},
    ],
)
def test_tags_come_along(make_bundle: MakeBundle, tags: dict[str, Any]) -> None:
    run, bundle = make_bundle(run={"data": {"tags": tags}})
    expected = Translator.from_run(run.run_dir).translate(TEXTS, "fr", "en")
    assert hyperadapter.load(bundle, "cpu").translate(TEXTS, "fr", "en") == expected


def test_a_run_folder_is_loaded_the_same_way(make_bundle: MakeBundle) -> None:
    run, bundle = make_bundle()
    of_run, of_bundle = (hyperadapter.load(path, "cpu") for path in (run.run_dir, bundle))
    assert of_run.directions == of_bundle.directions == ("en-de", "de-en", "en-fr", "fr-en")
    assert of_run.languages == of_bundle.languages == ("en", "de", "fr")
    assert of_run.translate(TEXTS, "en", "fr") == of_bundle.translate(TEXTS, "en", "fr")


def test_damaged_weights_of_a_run_are_found(make_bundle: MakeBundle, tmp_path: Path) -> None:
    run, _ = make_bundle()
    path = run.run_dir / "checkpoints" / "step-00000100" / "weights.safetensors"
    average = tmp_path / "average.safetensors"  # a weights file without a manifest
    average.write_bytes(path.read_bytes())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is not the file of its manifest; use another"):
        hyperadapter.load(run.run_dir, "cpu")
    with pytest.raises(CheckpointError, match="is not the file of its manifest; use another"):
        export_bundle(run.run_dir, tmp_path / "new")
    export_bundle(run.run_dir, tmp_path / "new", which=str(average))
    assert hyperadapter.load(tmp_path / "new", "cpu").translate(["page"], "en", "de")


def test_a_manifest_of_another_version_is_no_hindrance(
    make_bundle: MakeBundle, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = make_bundle()
    path = run.run_dir / "checkpoints" / "step-00000100" / "manifest.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({key: tree[key] for key in ("step", "files")}))
    assert hyperadapter.load(run.run_dir, "cpu").translate(["page"], "en", "de")
    assert "has a manifest of another version: its checksum is not compared" in caplog.text


def test_sizes_of_a_call(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    _, bundle = make_bundle(run={"evaluation": {"beam_size": 3, "batch_sentences": 5}})
    model = hyperadapter.load(bundle, "cpu")
    seen: list[tuple[int, int]] = []
    search = translate.search_n_best

    def spy(*arguments: Any, **options: Any) -> list[list[Hypothesis]]:
        seen.append((arguments[3].beam_size, arguments[1].src.num_sentences))
        return search(*arguments, **options)

    monkeypatch.setattr(translate, "search_n_best", spy)
    texts = ["page"] * 6
    model.translate(texts, "en", "de")
    model.translate(texts, "en", "de", beam_size=1, batch_sentences=4)
    model.translate(texts, "en", "de")
    model.translate_n_best(texts, "en", "de", batch_sentences=6)
    assert seen == [(3, 5), (3, 1), (1, 4), (1, 2), (3, 5), (3, 1), (3, 6)]
    with pytest.raises(ConfigError, match=r"(?s)translate .*beam_size.*\(got 0\)"):
        model.translate(texts, "en", "de", beam_size=0)
    with pytest.raises(ConfigError, match="texts is one text; give a list"):
        model.translate("page", "en", "de")


def test_options_of_a_call(make_bundle: MakeBundle) -> None:
    run, bundle = make_bundle()
    model, translator = hyperadapter.load(bundle, "cpu"), Translator.from_run(run.run_dir)
    evaluation = run.config.evaluation
    for options in (
        {"length_penalty": 0.0},
        {"max_length_ratio": 0.1, "max_length_extra": 1},
        {"coverage_penalty": 2.0, "no_repeat_ngram": 1},
        {"sampling": SamplingConfig(temperature=2.0, seed=7)},
    ):
        expected = translator.translate_n_best(
            TEXTS, "en", "de", evaluation.model_copy(update=options), n_best=3,
            prefixes=["Datei"] * 6,
        )  # fmt: skip
        found = model.translate_n_best(TEXTS, "en", "de", 3, ["Datei"] * 6, **options)
        assert [[t.text for t in one] for one in found] == [
            [t.text for t in one] for one in expected
        ]
        first = translator.translate(TEXTS, "en", "de", evaluation.model_copy(update=options))
        assert model.translate(TEXTS, "en", "de", **options) == first
    with pytest.raises(ConfigError, match="n_best is 6, but a search with beam_size 4"):
        model.translate_n_best(TEXTS, "en", "de", 6)
    for name, hint in (
        ("beams", r" \(did you mean 'beam_size'\?\)"),
        ("num_processes", ""),  # has a place in the same group, but means nothing here
        ("max_sentences", r" \(did you mean 'batch_sentences'\?\)"),
    ):
        message = f"translate: unknown option '{name}'{hint}; known options: beam_size, batch_s"
        with pytest.raises(ConfigError, match=message):
            model.translate(TEXTS, "en", "de", **{name: 3})
    with pytest.raises(ConfigError, match="texts is one text; give a list"):
        model.translate_n_best("page", "en", "de")


def test_the_sampling_of_a_bundle_can_be_turned_off(make_bundle: MakeBundle) -> None:
    _, plain = make_bundle()
    expected = hyperadapter.load(plain, "cpu").translate(TEXTS, "en", "de")
    _, drawing = make_bundle(run={"evaluation": {"sampling": {"temperature": 2.0}}})
    model = hyperadapter.load(drawing, "cpu")
    assert model.translate(TEXTS, "en", "de") != expected
    assert model.translate(TEXTS, "en", "de", sampling=None) == expected


def test_what_is_not_there_is_said_with_what_is(make_bundle: MakeBundle) -> None:
    _, bundle = make_bundle(directions=["en-de", "de-en"])
    model = hyperadapter.load(bundle, "cpu")
    assert model.languages == ("en", "de")
    with pytest.raises(LanguageError) as error:
        model.translate(["x"], "en", "dee")
    assert str(error.value) == (
        "this bundle has no language 'dee' (did you mean 'de'?); its languages are en, de"
    )
    with pytest.raises(LanguageError, match="no language 'fr'; its languages are en, de"):
        model.translate(["x"], "en", "fr")
    with pytest.raises(LanguageError) as error:
        model.translate(["x"], "en", "en")
    assert str(error.value) == (
        "this bundle does not translate en-en (did you mean 'en-de'?); its directions are en-de, "
        "de-en. Export the run with --directions for others"
    )


def test_many_directions_are_not_all_listed() -> None:
    assert loader._some(["a"] * 20) == ", ".join("a" * 20)
    assert loader._some(["a"] * 22).endswith("a and 2 more")


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder; name a bundle"):
        hyperadapter.load(tmp_path / "nowhere", "cpu")
    with pytest.raises(CheckpointError, match=r"is no bundle: it has no manifest\.json"):
        hyperadapter.load(tmp_path, "cpu")


BLOCKED = (
    "aiohttp", "click", "deepspeed", "fsspec", "google.protobuf", "jinja2", "matplotlib",
    "mlflow", "py3langid", "pyarrow", "rich", "sacrebleu", "scipy", "sqlalchemy",
    "transformers", "webdataset",
)  # fmt: skip
SCRIPT = """
import json, sys
blocked, path, texts = json.loads(sys.argv[1])
for name in blocked:
    sys.modules[name] = None
import hyperadapter
assert "torch" not in sys.modules
model = hyperadapter.load(path, "cpu")
print(json.dumps(model.translate(texts, src="en", tgt="de")))
"""


def test_the_packages_of_training_are_not_needed(make_bundle: MakeBundle) -> None:
    run, bundle = make_bundle()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([BLOCKED, str(bundle), TEXTS])],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = Translator.from_run(run.run_dir).translate(TEXTS, "en", "de")
    assert json.loads(done.stdout) == expected


def test_the_command_translates_with_a_bundle(make_bundle: MakeBundle) -> None:
    _, bundle = make_bundle("hyper")
    words = ["translate", "--run", str(bundle), "--src", "en", "--tgt", "de", "--device", "cpu"]
    done = CliRunner().invoke(cli, [*words, "--beam-size", "1"], input="Open the file\nClose\n")
    model = hyperadapter.load(bundle, "cpu")
    expected = model.translate(["Open the file", "Close"], "en", "de", beam_size=1)
    assert done.stdout.splitlines() == expected
    done = CliRunner().invoke(cli, [*words, "--checkpoint", "best"], input="")
    assert done.exit_code == 2
    assert "is a bundle, which has no checkpoints" in done.output
