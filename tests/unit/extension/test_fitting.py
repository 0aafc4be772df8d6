from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_pipeline.tokenizer import Tokenizer
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import TrainingError
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import load_config
from hyperadapter.extension.fitting import FitOptions, fit
from hyperadapter.extension.model import ExtendedModel, NewLanguage, extend_config
from hyperadapter.extension.relatives import rank_by_loss
from hyperadapter.extension.text import encode, make_batches, read_new_text, split_pairs
from hyperadapter.model.batch import Batch
from hyperadapter.model.parts import PARTS, part_of
from hyperadapter.model.seq2seq import Seq2Seq

NEW = NewLanguage("af", "en")
OPTIONS = FitOptions(max_passes=6, patience=6, learning_rate=0.2)
LONG = FitOptions(max_passes=25, patience=20, learning_rate=1.0)
Trained = Callable[[str], tuple[Path, Seq2Seq]]


class Case:
    """A trained model with a new language, and batches out of English."""

    def __init__(self, run_dir: Path, pairs: Path, tmp_path: Path) -> None:
        before = load_config(RunConfig, run_dir / "config.yaml")
        config = extend_config(before, NEW, tmp_path / "out")
        weights = run_dir / "checkpoints" / "step-00000007" / "weights.safetensors"
        self.extended = ExtendedModel(weights, config, NEW)
        tokenizer = Tokenizer.load(Path(before.data.folder) / "tokenizer")
        read = read_new_text([pairs], Direction("en", "af"), NEW, "--pairs")
        self.train, self.valid = (
            make_batches(
                encode(tokenizer, part, 40), NEW, self.extended.model, config, NEW.directions[:1]
            )
            for part in split_pairs(read, 0.3, 100)
        )

    def loss(self, batches: list[Batch] | None = None) -> float:
        return self.extended.mean_loss(batches or self.valid)


@pytest.fixture
def make_case(trained: Trained, af_pairs: Path, tmp_path: Path) -> Callable[..., Case]:
    return lambda kind="hyper": Case(trained(kind)[0], af_pairs, tmp_path)


@pytest.mark.parametrize("kind", ["hyper", "language"])
def test_the_languages_with_the_same_words_are_the_nearest(
    make_case: Callable[..., Case], kind: str
) -> None:
    case = make_case(kind)
    ranked = rank_by_loss(case.extended, case.train)
    assert {relative.code for relative in ranked[:2]} == {"de", "nl"}
    assert ranked[2].loss > ranked[1].loss + 1.0
    assert [r.loss for r in ranked] == sorted(r.loss for r in ranked)


def test_fitting_the_rows_finds_the_language_and_leaves_all_else_as_it_was(
    make_case: Callable[..., Case],
) -> None:
    case = make_case()
    drawn = case.loss()
    case.extended.set_rows(case.extended.rows_of("fr"))
    began = case.loss()
    before = {name: x.clone() for name, x in case.extended.model.state_dict().items()}
    report = fit(case.extended, case.train, case.valid, LONG)
    relative = rank_by_loss(case.extended, case.valid)[0].loss
    assert report.passes[0].valid_loss == began
    assert case.loss() == report.best.valid_loss
    # Better than as any language that is known, from the wrong one.
    assert case.loss() < min(began, drawn) - 0.4
    assert case.loss() < relative + 0.3
    assert report.num_parameters == 8  # no tag is used
    for name, now in case.extended.model.state_dict().items():
        assert torch.equal(now[: len(before[name])][:-1], before[name][:-1]), name
        fitted = name == "adapters.src_embedding.weight"
        assert torch.equal(now[-1], before[name][-1]) != fitted, name


def test_a_kept_tag_stays_that_of_the_relative(make_case: Callable[..., Case]) -> None:
    case = make_case()
    rows = case.extended.rows_of("es")
    case.extended.set_rows(rows)
    tags = {"encoder": "source", "decoder": "target"}
    config = case.extended.config
    data = config.data.model_copy(update={"tags": config.data.tags.model_copy(update=tags)})
    case.extended.config = config.model_copy(update={"data": data})
    report = fit(case.extended, case.train, case.valid, replace(OPTIONS, tag=False))
    now = case.extended.rows()
    assert torch.equal(now["embedding.weight"], rows["embedding.weight"])
    assert not torch.equal(
        now["adapters.src_embedding.weight"], rows["adapters.src_embedding.weight"]
    )
    assert report.num_parameters == 8
    assert report.best.number > 0


@pytest.mark.parametrize("parts", [("hyper_heads",), ("embedding", "decoder"), PARTS])
def test_parts_are_fitted_and_no_others(
    make_case: Callable[..., Case], parts: tuple[str, ...]
) -> None:
    case = make_case()
    before = {name: x.clone() for name, x in case.extended.model.named_parameters()}
    options = replace(OPTIONS, parts=parts, max_passes=2, parts_learning_rate=1e-3)  # type: ignore[arg-type]
    report = fit(case.extended, case.train, case.valid, options)
    assert report.best.number > 0
    changed = {
        part_of(name)
        for name, now in case.extended.model.named_parameters()
        if not torch.equal(now[:-1], before[name][:-1])
    }
    assert changed == set(parts) & {part_of(name) for name in before}
    numbers = sum(x.numel() for name, x in before.items() if part_of(name) in parts)
    rows = case.extended.rows()
    numbers += rows["adapters.src_embedding.weight"].numel() if parts != PARTS else 0
    numbers -= 16 if "embedding" in parts else 0  # a tag that nothing reads
    assert report.num_parameters == numbers
    assert not any(x.requires_grad for x in case.extended.model.parameters())
    assert not case.extended.model.training


def test_the_best_state_is_kept_and_patience_ends_the_fit(make_case: Callable[..., Case]) -> None:
    case = make_case()
    case.extended.set_rows(case.extended.rows_of("de"))
    began = case.loss()
    # So high a rate makes it worse at once.
    options = replace(OPTIONS, learning_rate=30.0, max_passes=20, patience=3)
    report = fit(case.extended, case.train, case.valid, options)
    assert report.best.number == 0
    assert len(report.passes) == 4
    assert case.loss() == began
    assert all(item.valid_loss > began for item in report.passes[1:])


def test_the_same_seed_gives_the_same_rows(make_case: Callable[..., Case]) -> None:
    found = []
    for seed in (1, 1, 2):
        case = make_case()
        case.extended.set_rows(case.extended.rows_of("fr"))
        fit(case.extended, case.train, case.valid, replace(OPTIONS, seed=seed, max_passes=2))
        found.append(case.extended.rows()["adapters.src_embedding.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_everything_is_the_rows_and_more(make_case: Callable[..., Case]) -> None:
    """New rows learn at their own rate whatever else is fitted."""
    moved = []
    for parts in ((), PARTS):
        case = make_case()
        case.extended.set_rows(case.extended.rows_of("fr"))
        before = case.extended.rows()["adapters.src_embedding.weight"]
        fit(case.extended, case.train, case.valid, replace(OPTIONS, parts=parts, max_passes=2))
        now = case.extended.rows()["adapters.src_embedding.weight"]
        moved.append(float((now - before).abs().max()))
    assert moved[1] > 0.5 * moved[0] > 0.0


def test_the_seed_decides_dropout_too(make_case: Callable[..., Case]) -> None:
    found = []
    for _ in range(2):
        torch.rand(len(found))  # the state of the process does not matter
        case = make_case()
        for module in case.extended.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        report = fit(case.extended, case.train, case.valid, replace(OPTIONS, parts=PARTS))
        found.append([item.train_loss for item in report.passes])
    assert found[0] == found[1]


def test_what_is_not_finite_ends_with_an_error(make_case: Callable[..., Case]) -> None:
    case = make_case()
    rows = case.extended.rows()
    case.extended.set_rows({name: torch.full_like(x, torch.inf) for name, x in rows.items()})
    with pytest.raises(TrainingError, match=r"pass 1: a gradient is not finite; lower --learning"):
        fit(case.extended, case.train, case.valid, OPTIONS)
