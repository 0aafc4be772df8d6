from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hyperadapter.checkpoint.weights import load_model
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import LanguageError
from hyperadapter.core.schema import load_config
from hyperadapter.extension.model import ExtendedModel, NewLanguage, extend_config
from hyperadapter.model.batch import Batch
from tests.unit.analysis.conftest import make_config
from tests.unit.extension.test_text import batches_of

NEW = NewLanguage("af", "en")
KINDS = ("hyper", "language", "direction", "family", "none")


def weights_of(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "step-00000007" / "weights.safetensors"


def extended_of(run_dir: Path, tmp_path: Path, new: NewLanguage = NEW) -> ExtendedModel:
    config = extend_config(load_config(RunConfig, run_dir / "config.yaml"), new, tmp_path / "out")
    return ExtendedModel(weights_of(run_dir), config, new)


def as_language(extended: ExtendedModel, code: str) -> Batch:
    """Returns one batch of the direction from English to a language, with the same text for all."""
    (batch,) = batches_of(extended.config, [("house tree", "haus baum")], code)
    return batch


@pytest.mark.parametrize(
    "directions", [(), ("en-*", "de-en"), ("de-en", "en-de", "en-nl", "nl-en"), ("*-en", "en-*")]
)
def test_no_known_language_or_direction_gets_another_number(
    tmp_path: Path, directions: tuple[str, ...]
) -> None:
    before = make_config(
        tmp_path, data={"directions": directions, "sources": [], "shards_folder": "x"}
    )
    after = extend_config(before, NEW, tmp_path / "runs" / "with-af")
    known = before.data.resolved_directions()
    assert after.data.languages == (*before.data.languages, "af")
    assert after.data.resolved_directions() == (*known, *NEW.directions)
    assert (after.name, after.run_dir) == ("with-af", str(tmp_path / "runs" / "with-af"))
    assert after.model == before.model


@pytest.mark.parametrize("kind", KINDS)
def test_the_known_part_is_bit_equal_and_a_relatives_rows_make_the_new_language_that_relative(
    dialect_run: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    run_dir = dialect_run(kind, data={"tags": {"encoder": "source", "decoder": "target"}})
    extended = extended_of(run_dir, tmp_path)
    config = load_config(RunConfig, run_dir / "config.yaml")
    before = load_model(weights_of(run_dir), config).model
    now = extended.model.state_dict()
    for name, tensor in before.state_dict().items():
        assert torch.equal(now[name][: len(tensor)], tensor), name
    assert extended.candidates == ("de", "nl", "es", "fr", "uk")
    with torch.no_grad():
        batch = as_language(extended, "nl")
        theirs = before(batch).loss
        assert torch.equal(extended.model(batch).loss, theirs)
        rows = extended.rows_of("nl")
        new = as_language(extended, "af")
        assert torch.equal(extended.loss(new, rows, 0.0).loss, theirs)
        assert not torch.equal(extended.model(new).loss, theirs)
        extended.set_rows(rows)
        assert torch.equal(extended.model(new).loss, theirs)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("hyper", {"embedding.weight": ("af",), "adapters.src_embedding.weight": ("af",)}),
        ("none", {"embedding.weight": ("af",)}),
        ("family", {"embedding.weight": ("af",)}),  # germanic is there already
    ],
)
def test_what_is_new(
    dialect_run: Callable[..., Path],
    tmp_path: Path,
    kind: str,
    expected: dict[str, tuple[str, ...]],
) -> None:
    extended = extended_of(dialect_run(kind), tmp_path)
    assert {name: extended.names(name) for name in extended.rows()} == expected
    sizes = {"embedding.weight": 16, "adapters.src_embedding.weight": 8}
    found = {name: row.numel() for name, row in extended.rows().items()}
    assert found == {name: sizes[name] for name in expected}


def test_stored_adapters_get_an_adapter_more(
    dialect_run: Callable[..., Path], tmp_path: Path
) -> None:
    directions = extended_of(dialect_run("direction"), tmp_path)
    stacks = [name for name in directions.rows() if "stack" in name]
    assert len(stacks) == 6
    assert {directions.names(name) for name in stacks} == {("en-af", "af-en")}


def test_the_first_language_of_a_family_begins_with_the_adapters_of_a_relatives_family(
    dialect_run: Callable[..., Path], tmp_path: Path
) -> None:
    tags = {"encoder": "source", "decoder": "target"}
    new = NewLanguage("fi", "en")
    extended = extended_of(dialect_run("family", data={"tags": tags}), tmp_path, new)
    assert extended.names("adapters.stack.up_KLDR") == ("finnic",)
    with torch.no_grad():
        theirs = extended.model(as_language(extended, "es")).loss
        found = extended.loss(as_language(extended, "fi"), extended.rows_of("es"), 0.0).loss
    assert torch.equal(found, theirs)


def test_the_gradient_of_the_rows_is_that_of_the_whole_tensors(
    dialect_run: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir = dialect_run("hyper", data={"tags": {"encoder": "source", "decoder": "target"}})
    extended = extended_of(run_dir, tmp_path)
    model, batch = extended.model.double(), as_language(extended, "af")
    rows = {name: row.double().requires_grad_(True) for name, row in extended.rows().items()}
    extended.loss(batch, rows, 0.1).loss.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(True)
    model(batch, 0.1).loss.backward()
    whole = dict(model.named_parameters())
    for name, row in rows.items():
        assert row.grad is not None
        expected = whole[name].grad
        assert expected is not None
        assert row.grad.abs().max() > 0, name
        torch.testing.assert_close(row.grad, expected[-len(row) :], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("new", "complaint"),
    [
        (NewLanguage("de", "en"), r"knows 'de' already"),
        (NewLanguage("af", "pt"), r"has no language 'pt'.*one of en, de, nl"),
        (NewLanguage("AF", "en"), r"write the language 'AF' as 'af'"),
    ],
)
def test_languages_that_cannot_be_added(tmp_path: Path, new: NewLanguage, complaint: str) -> None:
    with pytest.raises(LanguageError, match=complaint):
        extend_config(make_config(tmp_path), new, tmp_path / "out")


def test_a_pivot_without_trained_directions_has_no_relatives(
    dialect_run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(LanguageError, match=r"both directions between nl and no language"):
        extended_of(
            dialect_run(
                data={"directions": ["en-de", "de-en", "en-nl"]}, languages=("en", "de", "nl")
            ),
            tmp_path,
            NewLanguage("af", "nl"),
        )
