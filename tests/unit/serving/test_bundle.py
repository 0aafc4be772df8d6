"""Bundles that are damaged, incomplete, foreign or hostile."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperadapter.checkpoint.weights import load_weights, save_tensors
from hyperadapter.core.errors import CheckpointError
from hyperadapter.serving.bundle import is_bundle, load_adapters, read_bundle, write_manifest
from hyperadapter.serving.loader import load

MakeBundle = Callable[..., tuple[Any, Path]]
READ = (
    "adapters.safetensors",
    "config.json",
    "model.safetensors",
    "tokenizer/manifest.json",
    "tokenizer/spm.model",
    "tokenizer/spm.vocab",
)


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Path:
    return make_bundle()[1]


def change_config(bundle: Path, **keys: Any) -> None:
    """Changes config.json as who also makes a fitting manifest."""
    path = bundle / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    seal(bundle)


def seal(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    write_manifest(bundle)


def test_the_manifest_names_every_file(bundle: Path) -> None:
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    there = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert set(files) == there - {"manifest.json"} == {*READ, "README.md"}
    assert is_bundle(bundle)


@pytest.mark.parametrize("name", READ)
def test_a_changed_byte_is_found(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} .* is not the one of its manifest .* copy"):
        load(bundle, "cpu")


@pytest.mark.parametrize("name", READ)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is needed, but it is missing; copy it"):
        load(bundle, "cpu")
    seal(bundle)
    with pytest.raises(CheckpointError, match=f"{name} is needed, but its manifest does not name"):
        load(bundle, "cpu")


def test_the_card_may_be_edited(bundle: Path) -> None:
    (bundle / "README.md").write_text("Licence: MIT")
    assert load(bundle, "cpu").translate(["page"], "en", "de")


def test_a_bundle_from_before_an_option_of_the_search(bundle: Path) -> None:
    decoding = json.loads((bundle / "config.json").read_text())["decoding"]
    old = ("beam_size", "length_penalty", "max_length_ratio", "max_length_extra", "batch_sentences")
    assert decoding.keys() > set(old)
    expected = read_bundle(bundle)
    change_config(bundle, decoding={key: decoding[key] for key in old})
    assert read_bundle(bundle) == expected
    assert load(bundle, "cpu").translate(["page"], "en", "de")


def test_a_bundle_searches_as_its_run(make_bundle: MakeBundle) -> None:
    how = {"coverage_penalty": 0.2, "no_repeat_ngram": 3}
    for evaluation in (how, {"sampling": {"temperature": 0.5, "seed": 3}}):
        run, bundle = make_bundle(run={"evaluation": evaluation})
        found = read_bundle(bundle).decoding.evaluation
        for key in evaluation:
            assert getattr(found, key) == getattr(run.config.evaluation, key)


@pytest.mark.parametrize("found", [2, 0, None, "1"])
def test_another_version_is_refused(bundle: Path, found: Any) -> None:
    change_config(bundle, format=found, unheard_of=1)
    with pytest.raises(CheckpointError, match=f"has format {found!r}, but .* reads format 1; "):
        load(bundle, "cpu")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"unheard_of": 1}, "unheard_of: unknown key"),
        ({"languages": ["en", "../de", "fr"]}, r"unknown language code '\.\./de'"),
        ({"directions": ["en-../../x"]}, "is not a direction"),
        ({"directions": ["en-*"]}, "is not a direction"),
        ({"directions": ["en-is"]}, "'is' is not among the languages"),
        ({"directions": ["en-de"]}, "adapters are not those of the directions"),
        ({"adapters": {}}, "is not the one"),
        ({"num_pieces": 309}, r"of 310 pieces, but the weights were trained with \w+ of 309"),
        ({"tokenizer": "another"}, "is the tokenizer .* but the weights were trained with another"),
        ({"decoding": {"beam_size": 0}}, "decoding"),
    ],
)
def test_a_configuration_that_does_not_fit(
    bundle: Path, keys: dict[str, Any], message: str
) -> None:
    change_config(bundle, **keys)
    if not keys.get("adapters", True):  # then the file of adapters is not looked for
        assert read_bundle(bundle).adapters == {}
        return
    with pytest.raises(CheckpointError, match=message):
        load(bundle, "cpu")


def test_a_configuration_of_another_model(bundle: Path) -> None:
    model = json.loads((bundle / "config.json").read_text())["model"]
    change_config(bundle, model=model | {"ffn_dim": 17})
    with pytest.raises(CheckpointError, match="does not hold the tensors that config"):
        load(bundle, "cpu")
    adapter = model["adapter"] | {"bottleneck_dim": 5}
    change_config(bundle, model=model | {"adapter": adapter})
    with pytest.raises(CheckpointError, match=r"adapters\.safetensors holds .* asks for"):
        load(bundle, "cpu")
    change_config(bundle, model=model | {"adapter": adapter | {"kind": "language"}})
    with pytest.raises(CheckpointError, match=r"adapter\.kind is 'language' instead of 'none'"):
        load(bundle, "cpu")
    change_config(bundle, model=model | {"adapter": model["adapter"] | {"decoder_layers": []}})
    with pytest.raises(CheckpointError, match="not as many as the adapted layers"):
        load(bundle, "cpu")


@pytest.mark.parametrize("number", [-1, 99])
def test_numbers_of_adapters_that_do_not_exist(bundle: Path, number: int) -> None:
    adapters = json.loads((bundle / "config.json").read_text())["adapters"]
    change_config(bundle, adapters=adapters | {"en-de": [number, 0, 0]})
    with pytest.raises(CheckpointError, match=r"adapters"):
        load(bundle, "cpu")


def test_stored_adapters_are_read_in_single_precision(bundle: Path) -> None:
    tensors, _ = load_weights(bundle / "adapters.safetensors")
    halved = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_tensors(bundle / "adapters.safetensors", halved, {})
    seal(bundle)
    loaded = load_adapters(bundle, read_bundle(bundle))
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def test_the_attack_works_on_who_unpickles(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Attack(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", [name for name in READ if name != "tokenizer/spm.vocab"])
def test_a_pickle_in_place_of_a_file_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    torch.save({"x": Attack(tmp_path / "marker")}, bundle / name)
    seal(bundle)
    with pytest.raises(CheckpointError):
        load(bundle, "cpu")
    assert not (tmp_path / "marker").exists()


def test_a_pickle_beside_the_files_is_not_opened(bundle: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "tokenizer/spm.vocab", "adapters.pt"):  # pieces: for people
        torch.save({"x": Attack(tmp_path / "marker")}, bundle / name)
    seal(bundle)
    assert load(bundle, "cpu").translate(["page"], "en", "de")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "tokenizer/../../outside"])
def test_names_in_the_manifest_open_nothing(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle / "manifest.json"
    tree = json.loads(path.read_text())
    tree["files"][name] = {"bytes": 1, "sha256": "0"}
    path.write_text(json.dumps(tree))
    read: list[Path] = []
    original = Path.stat

    def spy(self: Path, **keys: Any) -> Any:
        read.append(self)
        return original(self, **keys)

    monkeypatch.setattr(Path, "stat", spy)
    read_bundle(bundle)
    assert read
    assert all(bundle in path.parents and ".." not in path.parts for path in read)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "other", "files": {}}'])
def test_a_manifest_that_is_none(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    assert not is_bundle(bundle)
    with pytest.raises(CheckpointError, match="is no whole bundle"):
        load(bundle, "cpu")
