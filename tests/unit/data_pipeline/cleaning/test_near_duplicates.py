"""Held-out texts are marked when either side stands in the train text of its language."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.bitext import SPLITS, SentencePair, format_line
from data_pipeline.cleaning import near_duplicates
from data_pipeline.cleaning.near_duplicates import write_held_out
from data_pipeline.cleaning.pair_corpus import unmarked_path
from data_pipeline.config import DataConfig
from hyperadapter.core.files import write_text

MakeConfig = Callable[..., DataConfig]
PAIRS = (("en", "de"), ("cs", "de"))

texts = st.lists(st.sampled_from("abcd"), min_size=1, max_size=8).map(" ".join)
rows = st.lists(st.tuples(texts, texts), max_size=5)


def is_near(text: str, train: list[str], least: float) -> bool:
    """The definition, without any hashes."""
    parts = text.split()
    n = min(5, len(parts))
    if text in train or n < 3:
        return text in train
    grams = [" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1)]
    return sum(any(f" {g} " in f" {t} " for t in train) for g in grams) >= least * len(grams)


@settings(max_examples=20)
@given(st.lists(rows, min_size=6, max_size=6), st.sampled_from([0.5, 1.0]), st.booleans())
def test_marks_agree_with_the_definition(
    tmp_path_factory: pytest.TempPathFactory,
    make_config: MakeConfig,
    texts: list[list[tuple[str, str]]],
    least: float,
    drop: bool,
) -> None:
    folder = tmp_path_factory.mktemp("marks")
    parts = [(split, pair) for split in SPLITS for pair in PAIRS]
    train: dict[str, list[str]] = {"en": [], "de": [], "cs": []}
    for (split, pair), part in zip(parts, texts, strict=True):
        lines = [format_line(SentencePair(a, b, "toy")) for a, b in part]
        write_text(unmarked_path(folder / "clean", split, pair), "".join(lines))
        if split == "train":
            for a, b in part:
                train[pair[0]].append(a)
                train[pair[1]].append(b)
    (folder / "hashes").mkdir()
    mode = "drop" if drop else "mark"
    config = make_config(
        folder,
        split={"near_duplicates": mode, "near_duplicate_containment": least},
        num_workers=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_PIECE_BYTES", 9)
        patch.setattr(near_duplicates, "_BATCH_ROWS", 2)
        counts = write_held_out(folder / "clean", PAIRS, folder / "hashes", config)
    for (split, pair), part in list(zip(parts, texts, strict=True))[2:]:
        near = [
            any(is_near(text, train[code], least) for text, code in zip(row, pair, strict=True))
            for row in part
        ]
        wanted = [
            f"toy\t{a}\t{b}\t{int(mark)}\n"
            for (a, b), mark in zip(part, near, strict=True)
            if not (mark and drop)
        ]
        path = folder / "clean" / split / f"{pair[0]}-{pair[1]}.tsv"
        assert path.read_text(encoding="utf-8") == "".join(wanted)
        assert counts[pair].splits[split].num_pairs == len(wanted)
        assert counts[pair].splits[split].num_near_duplicates == (0 if drop else sum(near))
    for pair in PAIRS:
        held_out = sum(len(texts[parts.index((split, pair))]) for split in SPLITS[1:])
        written = sum(counts[pair].splits[split].num_pairs for split in SPLITS[1:])
        assert counts[pair].dropped.total() == held_out - written
