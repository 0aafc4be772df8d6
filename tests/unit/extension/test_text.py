from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.ragged import Ragged
from data_pipeline.stream.batching import BatchLayout, build_micro_batch
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import DataError
from hyperadapter.core.files import write_text
from hyperadapter.core.languages import Direction
from hyperadapter.extension.model import NewLanguage, extend_config
from hyperadapter.extension.text import (
    EncodedText,
    Pairs,
    encode,
    make_batches,
    measure_coverage,
    read_new_text,
    split_pairs,
)
from hyperadapter.model.batch import Batch
from tests.unit.analysis.conftest import make_config, make_model

NEW = NewLanguage("af", "en")


def batches_of(config: RunConfig, pairs: Sequence[tuple[str, str]], code: str) -> list[Batch]:
    """Returns batches from English to a language, whose pieces are letters."""
    sides = [[np.array([*map(ord, text)], np.int32) for text in side] for side in zip(*pairs)]  # noqa: B905
    data = config.data
    layout = BatchLayout.from_config(data, 300)
    number = data.resolved_directions().index(Direction("en", code))
    rows = np.full(len(pairs), number)
    micro = build_micro_batch(
        layout, rows, Ragged.from_sequences(sides[0]), Ragged.from_sequences(sides[1])
    )
    return [Batch.from_micro_batch(micro)]


def numbered(count: int, seed: int, longest: int = 12) -> EncodedText:
    """Returns pairs whose first piece is the pair's number, from 10 on."""
    generator = np.random.default_rng(seed)

    def side(offset: int) -> list[np.ndarray]:
        return [
            np.array([10 + row, *[offset] * generator.integers(0, longest)], np.int32)
            for row in range(count)
        ]

    return EncodedText(side(5), side(6), list(range(count)), 0)


@given(st.integers(1, 80), st.integers(0, 50), st.booleans())
def test_every_pair_is_there_once_in_each_direction(count: int, seed: int, both: bool) -> None:
    config = extend_config(make_config(Path("run")), NEW, Path("out"))
    directions = NEW.directions if both else NEW.directions[1:]
    model = make_model(config)
    batches = make_batches(numbered(count, seed), NEW, model, config, directions, 9)
    known = config.data.resolved_directions()
    seen: dict[Direction, list[tuple[int, int]]] = {direction: [] for direction in directions}
    for batch in batches:
        starts = batch.src_N.view(-1, batch.src.width)[:, 0].tolist()
        targets = batch.tgt_in_M.view(len(starts), -1)[:, 1].tolist()
        marks = batch.src_N.view(-1, batch.src.width)
        of = [known[number] for number in batch.direction_P.tolist()]
        per = len(starts) // len(of)
        assert per <= 9
        for index, pair in enumerate(zip(starts, targets, strict=True)):
            direction = of[index // per]
            seen[direction].append(pair)
            inside = set(marks[index].tolist()) & {5, 6}
            assert inside <= ({5} if direction.src == "en" else {6})
        longest = max(batch.src.width, batch.tgt.width)
        assert len(starts) * longest <= config.training.micro_batch_tokens or per == 1
    expected = [(10 + row, 10 + row) for row in range(count)]
    assert {direction: sorted(pairs) for direction, pairs in seen.items()} == dict.fromkeys(
        directions, expected
    )


@given(st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.text(min_size=1)), min_size=30))
def test_equal_sentences_stay_on_one_side_and_nothing_is_lost(
    rows: list[tuple[str, str]],
) -> None:
    pairs = Pairs([row[0] for row in rows], [row[1] for row in rows])
    try:
        train, valid = split_pairs(pairs, 0.3, 100)
    except DataError:
        assert len(set(pairs.pivot)) < 8
        return
    assert not set(train.pivot) & set(valid.pivot)
    assert sorted([*zip(*train, strict=True), *zip(*valid, strict=True)]) == sorted(rows)
    # What is held out depends on the text alone: not on the order, nor on what else is there.
    again = split_pairs(Pairs(pairs.pivot[::-1], pairs.new[::-1]), 0.3, 100)[1]
    assert set(again.pivot) == set(valid.pivot)


def test_too_few_pairs_to_hold_some_out() -> None:
    with pytest.raises(DataError, match=r"3 pairs are too few to hold some out \(0\).*--valid"):
        split_pairs(Pairs(["a", "b", "c"], ["x", "y", "z"]), 0.1, 100)


def test_columns_may_be_swapped_and_what_is_there_twice_is_dropped_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["Haus\thouse", "baum  groß\ttree", "Haus\thouse"]
    path = tmp_path / "x.tsv"
    write_text(path, "".join(f"{line}\n" for line in lines))
    with caplog.at_level(logging.INFO):
        pairs = read_new_text([path], Direction("af", "en"), NEW, "--pairs")
    assert pairs == Pairs(["house", "tree"], ["Haus", "baum groß"])
    assert "1 of 3 pairs are there twice" in caplog.text
    with pytest.raises(DataError, match=r"--pairs are of af-de, but af is added beside en"):
        read_new_text([path], Direction("af", "de"), NEW, "--pairs")


def test_long_pairs_are_counted(data_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer.load(data_folder / "tokenizer")
    pairs = Pairs(["house", "tree " * 30], ["haus", "baum"])
    text = encode(tokenizer, pairs, 20)
    assert (len(text.pivot), len(text.new), text.rows, text.too_long) == (1, 1, [0], 1)
    assert [tokenizer.decode(side) for side in text[:2]] == [["house"], ["haus"]]
    assert "1 of 2 pairs have a sentence of more than 20 tokens" in caplog.text
    with pytest.raises(DataError, match=r"all 1 pairs have a sentence of more than 2 tokens"):
        encode(tokenizer, Pairs(["house tree river"], ["haus"]), 2)


def test_coverage_counts_characters_that_must_be_spelled(
    data_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = Tokenizer.load(data_folder / "tokenizer")
    known = measure_coverage(tokenizer, Pairs(["house tree"], ["haus baum"]))
    assert (known.spelled_out, known.worst) == (0.0, ())
    assert not caplog.records
    half = measure_coverage(tokenizer, Pairs(["house"], ["hauჰჰ ჰს"]))
    assert half.spelled_out == pytest.approx(4 / 7)
    assert half.worst == (("ჰ", 3), ("ს", 1))
    assert half.pieces_per_character > known.pieces_per_character
    assert "57 % of the new language's characters have no piece" in caplog.text
