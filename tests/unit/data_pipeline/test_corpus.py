"""From raw text to the clean corpus: the contract of its files, and what stops it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.bitext import SPLITS, read_split
from data_pipeline.config import DataConfig, SplitConfig
from data_pipeline.corpus import build_clean_corpus, clean_folder, read_manifest
from data_pipeline.split import split_of
from hyperadapter.core.errors import DataError

MakeConfig = Callable[..., DataConfig]
LETTERS = "abcdefghijklmnop"
ENGLISH = [f"{x} went to the {y} yesterday" for x in LETTERS for y in LETTERS]


def write_tsv(folder: Path, name: str, rows: list[tuple[str, str]]) -> dict[str, Any]:
    path = folder / f"{name}.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in rows), encoding="utf-8")
    code = name.split("-")[-1]
    return {"format": "tsv", "name": name, "languages": ["en", code], "path": str(path)}


def translate(text: str, code: str) -> str:
    return " ".join(word + code for word in text.split())


@pytest.fixture
def config(tmp_path: Path, make_config: MakeConfig) -> DataConfig:
    """English with German and Czech; Czech has every second text, and German some dirt."""
    german = [(text, translate(text, "de")) for text in ENGLISH]
    dirt = [("same", "same"), ("a|b c", "b|c d"), german[0], (german[1][0], "etwas anderes hier")]
    sources = [
        write_tsv(tmp_path, "toy-de", german + dirt),
        write_tsv(tmp_path, "more-de", german[:3]),
        write_tsv(tmp_path, "toy-cs", [(text, translate(text, "cs")) for text in ENGLISH[::2]]),
    ]
    return make_config(
        tmp_path / "data",
        languages=("en", "de", "cs"),
        sources=sources,
        split={"valid_fraction": 0.1, "test_fraction": 0.1},
    )


def test_every_text_is_in_one_split_and_in_the_same_one_everywhere(config: DataConfig) -> None:
    build_clean_corpus(config)
    folder = clean_folder(config)
    german = {split: set(read_split(folder, split, ("en", "de")).a) for split in SPLITS}
    czech = {split: set(read_split(folder, split, ("en", "cs")).a) for split in SPLITS}
    assert sum(map(len, german.values())) == len(set().union(*german.values())) == len(ENGLISH)
    for split in SPLITS:
        assert german[split]
        assert czech[split] == german[split] & set(ENGLISH[::2])


def test_every_text_read_is_accounted_for(config: DataConfig) -> None:
    manifest = build_clean_corpus(config)
    counts = manifest.sources["en-de"]
    assert counts["toy-de"].num_read == len(ENGLISH) + 4
    assert counts["toy-de"].dropped == {
        "pipe or backslash": 1,
        "target equals source": 1,
        "duplicate": 1,
        "another target preferred": 1,
    }
    assert counts["more-de"].num_kept == 0
    for sources in manifest.sources.values():
        for count in sources.values():
            assert count.num_read == count.num_kept + sum(count.dropped.values())
    splits = manifest.splits["en-de"]
    assert sum(split.num_pairs for split in splits.values()) == len(ENGLISH)
    train = read_split(clean_folder(config), "train", ("en", "de"))
    assert splits["train"].num_pairs == len(train)
    assert splits["train"].words_a == sum(len(text.split()) for text in train.a)
    assert splits["train"].pairs_by_source == {"toy-de": len(train)}


def test_near_duplicates_are_marked_alike_in_all_pairs(config: DataConfig) -> None:
    manifest = build_clean_corpus(config)
    marks: dict[str, bool] = {}
    for pair in (("en", "de"), ("en", "cs")):
        text = read_split(clean_folder(config), "test", pair)
        for a, mark in zip(text.a, text.near_duplicate, strict=True):
            assert marks.setdefault(a, mark) == mark
        assert manifest.splits["-".join(pair)]["test"].num_near_duplicates == sum(
            text.near_duplicate
        )
    # "{x} went to the {y} yesterday" has two 5-grams, and train has some x and y of each.
    assert all(marks.values())


@pytest.mark.parametrize("other", ["de", "cs"])
def test_a_pair_is_marked_when_its_other_side_stands_in_train(
    tmp_path: Path, make_config: MakeConfig, other: str
) -> None:
    """The training text may come from another language pair with that language."""
    english = [f"{x}{y}" for x in LETTERS for y in LETTERS]
    split = SplitConfig(valid_fraction=0.1, test_fraction=0.1)
    held_out = [text for text in english if split_of(text, split) == "test"]
    train = [text for text in english if split_of(text, split) == "train"]
    german = {text: f"{text}de" for text in english}
    czech = {f"{text} cs": f"{text} cs-de" for text in english}
    german[held_out[0]] = "Zwei Wörter!"
    if other == "de":
        german[train[0]] = "zwei  wörter"
    else:
        czech[next(text for text in czech if split_of(text, split) == "train")] = "zwei  wörter"
    sources = [
        write_tsv(tmp_path, "toy-de", list(german.items())),
        write_tsv(tmp_path, "more-de", list(czech.items())) | {"languages": ["cs", "de"]},
    ]
    config = make_config(
        tmp_path / "data",
        languages=("en", "cs", "de"),
        directions=["de-en", "cs-de"],
        sources=sources,
        split=split.model_dump(),
    )
    manifest = build_clean_corpus(config)
    text = read_split(clean_folder(config), "test", ("en", "de"))
    marked = [a for a, mark in zip(text.a, text.near_duplicate, strict=True) if mark]
    assert marked == [held_out[0]]
    assert manifest.splits["en-de"]["test"].num_near_duplicates == 1


def test_a_source_that_listed_directions_leave_out_is_told(
    config: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    build_clean_corpus(config.model_copy(update={"directions": ("en-de",)}))
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["source toy-cs serves none of data.directions and is not read"]


def test_a_finished_corpus_is_not_made_again(config: DataConfig) -> None:
    manifest = build_clean_corpus(config)
    path = clean_folder(config) / "train" / "en-de.tsv"
    time = path.stat().st_mtime_ns
    assert build_clean_corpus(config) == manifest
    assert path.stat().st_mtime_ns == time


def test_a_changed_configuration_or_file_makes_it_anew(config: DataConfig, tmp_path: Path) -> None:
    first = build_clean_corpus(config)
    stricter = config.model_copy(
        update={"clean": config.clean.model_copy(update={"min_letters": 0.9})}
    )
    second = build_clean_corpus(stricter)
    with open(tmp_path / "toy-de.tsv", "a", encoding="utf-8") as stream:
        stream.write("new text here\tneuer Text\n")
    third = build_clean_corpus(stricter)
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3
    num_read = [m.sources["en-de"]["toy-de"].num_read for m in (first, second, third)]
    assert num_read == [len(ENGLISH) + 4, len(ENGLISH) + 4, len(ENGLISH) + 5]
    # What does not touch the text does not touch the corpus either.
    other = stricter.model_copy(
        update={"tokenizer": config.tokenizer.model_copy(update={"vocab_size": 99})}
    )
    assert build_clean_corpus(other) == third


def test_the_same_inputs_give_the_same_bytes(config: DataConfig, tmp_path: Path) -> None:
    build_clean_corpus(config)
    again = config.model_copy(update={"folder": str(tmp_path / "again")})
    build_clean_corpus(again)
    files = sorted(path for path in clean_folder(config).rglob("*") if path.is_file())
    assert len(files) == 7
    for path in files:
        other = clean_folder(again) / path.relative_to(clean_folder(config))
        assert other.read_bytes() == path.read_bytes()


def test_a_pair_with_an_empty_split_is_named_with_its_counts(
    config: DataConfig, tmp_path: Path
) -> None:
    sources = (
        config.sources[0],
        config.sources[2].model_copy(
            update={"path": write_tsv(tmp_path, "tiny-cs", [("yes sir", "ano pane")])["path"]}
        ),
    )
    tiny = config.model_copy(update={"sources": sources})
    with pytest.raises(DataError) as caught:
        build_clean_corpus(tiny)
    message = str(caught.value)
    assert re.search(r"en-cs: .* has no sentence pairs \(train \d, valid \d, test \d\)", message)
    assert "Add a source" in message
    assert "raise data.split's fractions" in message
    assert "en-de" not in message
    assert read_manifest(clean_folder(tiny)) is None


def test_a_pair_whose_texts_were_all_dropped_says_why(config: DataConfig, tmp_path: Path) -> None:
    path = write_tsv(tmp_path, "same-cs", [("yes", "yes"), ("no", "no")])["path"]
    sources = (config.sources[0], config.sources[2].model_copy(update={"path": path}))
    why = r"en-cs: all 2 texts were dropped \(target equals source 2\); see data\.clean"
    with pytest.raises(DataError, match=why):
        build_clean_corpus(config.model_copy(update={"sources": sources}))


def test_a_pair_without_any_text(config: DataConfig, tmp_path: Path) -> None:
    path = write_tsv(tmp_path, "empty-cs", [])["path"]
    sources = (config.sources[0], config.sources[2].model_copy(update={"path": path}))
    with pytest.raises(DataError, match="en-cs: no source has any text"):
        build_clean_corpus(config.model_copy(update={"sources": sources}))


def test_progress_goes_to_the_log_without_a_terminal(
    config: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        build_clean_corpus(config)
    assert "en-de: train " in caplog.text
    assert "cleaning: 2 of 2 in " in caplog.text
