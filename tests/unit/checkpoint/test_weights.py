"""Weights files: what was saved comes back, and what does not fit is refused by name."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from hyperadapter.checkpoint import weights
from hyperadapter.checkpoint.weights import WeightsInfo, load_model, load_weights, save_weights
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import CheckpointError, DiskFullError
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import parse_config
from hyperadapter.model.seq2seq import Seq2Seq, build_model
from hyperadapter.model.vocabulary import Vocabulary


def config(**adapter: Any) -> RunConfig:
    adapter = adapter or {"kind": "hyper", "bottleneck_dim": 3, "hyper_network": {"hyper_dim": 4}}
    training = {
        "micro_batch_tokens": 64,
        "global_batch_tokens": 64,
        "max_steps": 1,
        "learning_rate": 0.1,
        "schedule": {"kind": "inverse_sqrt", "warmup_steps": 0},
        "checkpoint": {"every_steps": 1},
        "validation": {"every_steps": 1},
    }
    data = {
        "folder": "data",
        "languages": ["en", "de", "nb"],
        "sources": [{"format": "tsv", "name": "x", "languages": ["en", "de"], "path": "x.tsv"}],
        "tokenizer": {"vocab_size": 16},
        "shards": {"max_sentence_tokens": 8},
    }
    model = {
        "d_model": 8,
        "ffn_dim": 8,
        "num_heads": 2,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "adapter": adapter,
    }
    tree = {"name": "x", "run_dir": "x", "data": data, "model": model, "training": training}
    return parse_config(RunConfig, tree, "test")


def built(config: RunConfig) -> tuple[Seq2Seq, WeightsInfo]:
    vocabulary = Vocabulary(16, config.data.languages, config.data.resolved_directions())
    info = WeightsInfo(7, "0123456789ab", vocabulary, "tokenizer7")
    return build_model(config.model, vocabulary, 1), info


def saved(folder: Path, config: RunConfig, **changes: torch.Tensor | None) -> Path:
    """Saves a model's weights, with tensors changed or (None) left out."""
    model, info = built(config)
    state: dict[str, torch.Tensor | None] = {**model.state_dict(), **changes}
    path = folder / "weights.safetensors"
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_weights(path, kept, info.to_metadata())
    return path


@given(
    st.dictionaries(
        st.text("abc.", min_size=1, max_size=5),
        st.tuples(
            st.lists(st.integers(0, 3), max_size=3),
            st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.dictionaries(st.text("xyz", min_size=1, max_size=3), st.text(max_size=5), max_size=3),
)
def test_save_load_save_is_equal(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: dict[str, tuple[list[int], torch.dtype]],
    metadata: dict[str, str],
) -> None:
    path = tmp_path_factory.mktemp("weights") / "new" / "w.safetensors"
    generator = torch.Generator().manual_seed(len(shapes))
    state = {
        name: torch.randn(shape, generator=generator).mul(9).to(dtype)
        for name, (shape, dtype) in shapes.items()
    }
    save_weights(path, state, metadata)
    for _ in range(2):
        found, found_metadata = load_weights(path)
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
        assert found_metadata == metadata
        save_weights(path, found, found_metadata)
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_views_and_tensors_with_two_names_are_saved_whole(tmp_path: Path) -> None:
    flat = torch.arange(20_000.0)
    state = {
        "a": flat[:6].view(2, 3),
        "b": flat[4:9],
        "c": flat[4:9],
        "d": flat[:12].view(3, 4).t(),
    }
    twice = {"e": flat[:5].clone()}
    state |= twice | {"f": twice["e"]}
    save_weights(tmp_path / "w", state, {})
    found, _ = load_weights(tmp_path / "w")
    assert all(torch.equal(found[name], state[name]) for name in state)
    # A view of a large buffer does not drag the buffer along.
    assert (tmp_path / "w").stat().st_size < 1000


@pytest.mark.parametrize(
    "adapter",
    [
        {"kind": "none"},
        {"kind": "language", "bottleneck_dim": 3},
        {"kind": "direction", "bottleneck_dim": 3},
        {"kind": "hyper", "bottleneck_dim": 3, "hyper_network": {"hyper_dim": 4}},
    ],
    ids=lambda adapter: adapter["kind"],
)
def test_a_model_comes_back(tmp_path: Path, adapter: dict[str, Any]) -> None:
    run = config(**adapter)
    path = saved(tmp_path, run)
    model, info = load_model(path, run)
    reference, expected = built(run)
    assert info == expected
    assert not model.training
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_metadata_tells_what_the_weights_are_for(tmp_path: Path) -> None:
    with safe_open(saved(tmp_path, config()), "pt") as handle:
        metadata = handle.metadata()
    assert metadata == {
        "format": "pt",
        "step": "7",
        "fingerprint": "0123456789ab",
        "tokenizer": "tokenizer7",
        "num_pieces": "16",
        "languages": '["en", "de", "nb"]',
        "directions": '["en-de", "de-en", "en-nb", "nb-en"]',
    }
    info = WeightsInfo.from_metadata(metadata, tmp_path)
    assert info.vocabulary.directions[3] == Direction("nb", "en")


def test_a_tie_survives(tmp_path: Path) -> None:
    run = config()
    model, _ = load_model(saved(tmp_path, run), run)
    assert model.adapters is not None
    assert model.adapters.tgt_embedding is None


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"w do not exist; .* has other.safetensors"):
        load_weights(tmp_path / "w")
    with pytest.raises(CheckpointError, match="there is no folder"):
        load_weights(tmp_path / "nowhere" / "w")


@pytest.mark.parametrize("damage", ["empty", "short", "garbage", "folder"])
def test_damaged_file(tmp_path: Path, damage: str) -> None:
    path = saved(tmp_path, config())
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        broken = {"empty": b"", "short": content[:-5], "garbage": b"\xff" * 99}
        path.write_bytes(broken[damage])
    with pytest.raises(CheckpointError, match=r"is not a whole safetensors file .*use another"):
        load_model(path, config())


def test_foreign_file(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", {"x": torch.ones(1)}, {"num_pieces": "4"})
    with pytest.raises(CheckpointError, match="has no 'languages' in its metadata"):
        load_model(tmp_path / "w", config())


@pytest.mark.parametrize(
    ("key", "value"), [("step", "x"), ("languages", "[3"), ("directions", '["en-xx"]')]
)
def test_unreadable_metadata(tmp_path: Path, key: str, value: str) -> None:
    _, info = built(config())
    save_weights(tmp_path / "w", {}, info.to_metadata() | {key: value})
    with pytest.raises(CheckpointError, match="metadata that cannot be read"):
        load_model(tmp_path / "w", config())


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    changes = {"encoder.norm.bias": None, "encoder.norm.bia": torch.ones(8)}
    path = saved(tmp_path, config(), **changes)
    with pytest.raises(CheckpointError) as error:
        load_model(path, config())
    assert str(error.value) == (
        f"{path} lacks 1 tensors of the model: encoder.norm.bias and has 1 tensors unknown to it: "
        "encoder.norm.bia (the model has 'encoder.norm.bias'); use the config.yaml of the run that "
        "wrote it"
    )


def test_a_dense_file_for_a_hyper_model_lists_a_few_names(tmp_path: Path) -> None:
    path = saved(tmp_path, config(kind="none"))
    with pytest.raises(CheckpointError, match=r"lacks \d+ tensors .* and \d+ more; use the config"):
        load_model(path, config())


def test_wrong_shape_names_both(tmp_path: Path) -> None:
    changes = {"encoder.norm.bias": torch.ones(9), "decoder.norm.bias": torch.ones(9)}
    path = saved(tmp_path, config(), **changes)
    expected = r"'encoder.norm.bias' of shape \[9\], but .* is \[8\], and 1 more tensors differ"
    with pytest.raises(CheckpointError, match=expected):
        load_model(path, config())


@pytest.mark.parametrize(
    ("key", "value"),
    [("languages", ("en", "nb", "de")), ("directions", ("en-de",))],
)
def test_other_symbols_are_refused(tmp_path: Path, key: str, value: tuple[str, ...]) -> None:
    run = config()
    path = saved(tmp_path, run)
    other = run.model_copy(update={"data": run.data.model_copy(update={key: value})})
    with pytest.raises(CheckpointError, match=rf"was trained with data.{key} en.*but the config"):
        load_model(path, other)


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, config())
    before = path.read_bytes()

    def full(tensors: object, part: Path, **_: object) -> None:
        part.write_bytes(b"half")
        raise SafetensorError(f"I/O error: No space left (os error {errno.ENOSPC})")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(DiskFullError, match="no space left on the disk while writing"):
        save_weights(path, {}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
