from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import tokenizer
from data_pipeline.config import DataConfig
from data_pipeline.provenance import require_current
from data_pipeline.shards import writer as shards
from hyperadapter.core.errors import DataError

MakeCorpus = Callable[..., DataConfig]


@pytest.fixture
def built(make_corpus: MakeCorpus) -> DataConfig:
    config = make_corpus({"de": 60})
    tokenizer.run(config)
    shards.run(config)
    return config


def changed(config: DataConfig, group: str, **values: Any) -> DataConfig:
    part = getattr(config, group).model_copy(update=values)
    return config.model_copy(update={group: part})


def test_what_was_built_is_current_and_has_one_name(built: DataConfig) -> None:
    assert require_current(built) == require_current(built)


@pytest.mark.parametrize(
    ("group", "values", "step"),
    [
        ("tokenizer", {"temperature": 2.0}, "tokenizer"),
        ("shards", {"max_sentence_tokens": 30}, "shard"),
    ],
)
def test_other_settings_are_refused(
    group: str, values: dict[str, Any], step: str, built: DataConfig
) -> None:
    with pytest.raises(DataError, match=rf"made with another .* run `hyperadapter data {step}`"):
        require_current(changed(built, group, **values))


def test_shards_of_another_tokenizer_are_refused(built: DataConfig) -> None:
    before = require_current(built)
    other = changed(built, "tokenizer", temperature=2.0)
    tokenizer.run(other)
    with pytest.raises(DataError, match=r"shards/train was made .* run `hyperadapter data shard`"):
        require_current(other)
    shards.run(other)
    assert require_current(other) != before


def test_shards_of_other_text_are_refused(built: DataConfig) -> None:
    path = Path(built.folder) / "clean/valid/en-de.tsv"
    path.write_text(path.read_text(encoding="utf-8") * 2, encoding="utf-8")
    with pytest.raises(DataError, match=r"shards/valid was made .*data.shards \(en-de\) than"):
        require_current(built)


def elsewhere(config: DataConfig, tmp_path: Path, **data: Any) -> DataConfig:
    """Moves the shards away and names them in the configuration."""
    (Path(config.folder) / "shards").rename(tmp_path / "made-elsewhere")
    values = {"shards_folder": str(tmp_path / "made-elsewhere"), "sources": ()} | data
    return config.model_copy(update=values)


def test_shards_made_elsewhere_need_no_text(built: DataConfig, tmp_path: Path) -> None:
    before = require_current(built)
    config = elsewhere(built, tmp_path)
    shutil.rmtree(Path(config.folder) / "clean")
    assert require_current(config) == before
    assert require_current(changed(config, "shards", max_sentence_tokens=30)) == before


def test_shards_made_elsewhere_with_the_pair_the_other_way(
    built: DataConfig, tmp_path: Path
) -> None:
    assert require_current(elsewhere(built, tmp_path, pivot="de"))


def test_shards_made_elsewhere_without_a_pair(built: DataConfig, tmp_path: Path) -> None:
    config = elsewhere(built, tmp_path, languages=("en", "de", "cs", "fr"))
    with pytest.raises(DataError, match=r"has no shards of en-cs, en-fr, which data.directions"):
        require_current(config)


def test_shards_made_elsewhere_with_another_tokenizer(built: DataConfig, tmp_path: Path) -> None:
    config = elsewhere(built, tmp_path)
    tokenizer.run(changed(built, "tokenizer", temperature=2.0))
    with pytest.raises(DataError, match=r"made with the tokenizer \w+, but .*/tokenizer is \w+;"):
        require_current(config)


def test_shards_of_directions_left_out_do_no_harm(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 60, "cs": 30})
    tokenizer.run(config)
    shards.run(config)
    path = Path(config.folder) / "tokenizer"
    fewer = changed(config, "tokenizer", folder=str(path)).model_copy(
        update={"directions": ("en-de",)}
    )
    assert require_current(fewer) != require_current(config)


def test_text_of_other_settings_is_refused(built: DataConfig, tmp_path: Path) -> None:
    raw = Path(built.folder) / "raw"
    raw.mkdir()
    (raw / "fetch.json").write_text(
        '{"files": [{"source": "toy-de", "path": "none.tsv", "num_bytes": 1, '
        '"mtime_ns": 1, "sha256": "' + "0" * 64 + '"}]}'
    )
    with pytest.raises(DataError, match=r"clean was made .* run `hyperadapter data clean`"):
        require_current(built)
