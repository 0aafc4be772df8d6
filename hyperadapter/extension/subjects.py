"""Languages to be mixed from others: unseen ones, which bring text, and the run's own, left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.bitext import Split, pair_of, read_split
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.analysis.relatedness import load_run
from hyperadapter.analysis.representations import require_language_adapters
from hyperadapter.checkpoint.layout import choose_weights
from hyperadapter.checkpoint.weights import LoadedModel
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import DataError, LanguageError, nearest
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import load_config
from hyperadapter.evaluation.translate import choose_device
from hyperadapter.extension.model import ExtendedModel, NewLanguage, extend_config
from hyperadapter.extension.text import (
    Pairs,
    encode,
    make_batches,
    read_new_text,
    sample_pairs,
    split_pairs,
    without,
)
from hyperadapter.model.batch import Batch

__all__ = [
    "Subject",
    "Text",
    "Unseen",
    "batches_by_direction",
    "left_out_subjects",
    "read_text",
    "unseen_subject",
]

_LEAST_PAIRS = 10
_STOP_SHARE = 0.25
"""Of the sentences to learn from, those that say when to stop."""
_TEST_SHARE = 0.3
"""Of an unseen language's sentences, those that are tested on where there is no test file."""
_STEP_SENTENCES = 8
"""Of a batch, and so of a step of learning, at most."""
_SPLITS: tuple[Split, Split] = ("valid", "test")


class Unseen(NamedTuple):
    """A language that the run does not know, and its text.

    Attributes:
        code: Of the language.
        columns: Languages of the files' first and second column.
        pairs: One file of pairs, or two aligned ones, to learn from.
        test: The same to measure on; empty: some of `pairs` are held out.
    """

    code: str
    columns: Direction
    pairs: tuple[Path, ...]
    test: tuple[Path, ...] = ()


class Text(NamedTuple):
    """Pairs of a language: to learn from, to stop by, and to measure on."""

    learn: Pairs
    stop: Pairs
    test: Pairs
    test_name: str


class Subject(NamedTuple):
    """A language to be mixed from others.

    Attributes:
        new: The language, and the pivot.
        loaded: A model with rows for it.
        config: Of that model.
        others: Of which it is mixed.
        is_known: Whether its rows were trained.
    """

    new: NewLanguage
    loaded: LoadedModel
    config: RunConfig
    others: tuple[str, ...]
    is_known: bool

    @property
    def directions(self) -> list[Direction]:
        """Those between the language and the pivot that the model has."""
        trained = self.config.data.resolved_directions()
        return [direction for direction in self.new.directions if direction in trained]


def unseen_subject(run_dir: Path, unseen: Unseen, checkpoint: str) -> Subject:
    """Gives a trained model rows for an unseen language.

    Raises:
        CheckpointError: There is no such checkpoint.
        ConfigError: The run's adapters do not belong to languages.
        LanguageError: The run knows the language, or the columns are of other languages.
    """
    config = load_config(RunConfig, run_dir / "config.yaml")
    require_language_adapters(config.model)
    if unseen.code in config.data.languages:
        raise LanguageError(
            f"this run knows {unseen.code!r} already; leave --pairs and --language away, and "
            f"--languages {unseen.code} mixes it from the others"
        )
    pivots = [code for code in unseen.columns if code != unseen.code]
    if len(pivots) != 1:
        raise LanguageError(
            f"--columns {unseen.columns} must name the --language {unseen.code!r} and a language "
            f"of the run, such as {config.data.pivot}-{unseen.code}"
        )
    new = NewLanguage(unseen.code, pivots[0])
    weights = choose_weights(run_dir, checkpoint, config.training.checkpoint)
    device = choose_device(config.training.device)
    extended = ExtendedModel(weights, extend_config(config, new, run_dir), new, device)
    loaded = LoadedModel(extended.model, extended.info)
    return Subject(new, loaded, extended.config, extended.candidates, is_known=False)


def left_out_subjects(run_dir: Path, codes: Sequence[str], checkpoint: str) -> list[Subject]:
    """Returns languages of a run to leave out; those with the same directions can replace each.

    Args:
        run_dir: The run folder.
        codes: Which; empty: all.
        checkpoint: See `layout.choose_weights`.

    Raises:
        CheckpointError: There is no such checkpoint.
        ConfigError: The run's adapters do not belong to languages.
        LanguageError: A code is none of a language that can be left out, or there is none.
    """
    config, loaded = load_run(run_dir, checkpoint)
    pivot = config.data.pivot
    all_of_them = [
        Subject(NewLanguage(code, pivot), loaded, config, (), is_known=True)
        for code in config.data.languages
        if code != pivot
    ]
    sides = {
        subject.new.code: {direction.src == pivot for direction in subject.directions}
        for subject in all_of_them
    }
    subjects = []
    for subject in all_of_them:
        mine = sides[subject.new.code]
        others = [code for code in sides if code != subject.new.code and mine <= sides[code]]
        if mine and others:
            subjects.append(subject._replace(others=tuple(others)))
    known = [subject.new.code for subject in subjects]
    if not known:
        raise LanguageError(
            f"nothing can be left out: of data.languages {', '.join(config.data.languages)}, no "
            f"two were trained with the pivot {pivot} in the same directions"
        )
    _check_codes(codes, known, pivot)
    return [subject for subject in subjects if subject.new.code in (codes or known)]


def _check_codes(codes: Sequence[str], known: Sequence[str], pivot: str) -> None:
    for index, code in enumerate(codes):
        if code not in known:
            what = "is the pivot" if code == pivot else f"was not trained with {pivot}"
            raise LanguageError(
                f"{code!r} cannot be left out, it {what}{nearest(code, known)}; choose from "
                f"{', '.join(known)}, or give --language, --columns and --pairs for an unseen one"
            )
        if code in codes[:index]:
            raise LanguageError(f"language {code!r} is named twice; name each once")


def read_text(subject: Subject, unseen: Unseen | None, sentences: int, seed: int) -> Text:
    """Reads all text of a language; what is tested on is nowhere among the rest.

    Args:
        subject: The language.
        unseen: Its files, or None for the run's own splits.
        sentences: To learn from, at most; tested are `evaluation.max_sentences`.
        seed: Of the choice.

    Raises:
        DataError: There is no text, or too little.
    """
    most, new = subject.config.evaluation.max_sentences, subject.new
    if unseen is None:
        pairs, test = (_read_split(subject, split) for split in _SPLITS)
        place, test_name = "the run's validation split", "the run's test split"
    else:
        pairs = read_new_text(unseen.pairs, unseen.columns, new, "--pairs")
        place = "--pairs"
        _check_enough(pairs, place, new.code)
        if unseen.test:
            test = read_new_text(unseen.test, unseen.columns, new, "--test")
            test_name = "--test"
        else:
            pairs, test = split_pairs(pairs, _TEST_SHARE, most)
            test_name = "held-out pairs of --pairs"
    learn = sample_pairs(without(pairs, test), sentences, seed)
    _check_enough(learn, place, new.code)
    train, stop = split_pairs(learn, _STOP_SHARE, len(learn.pivot))
    return Text(train, stop, sample_pairs(test, most, seed), test_name)


def _read_split(subject: Subject, split: Split) -> Pairs:
    config = subject.config.data
    pair = pair_of(subject.new.directions[0], config)  # the pivot first
    text = read_split(Path(config.folder) / "clean", split, pair)
    rows = [row for row, near in enumerate(text.near_duplicate) if not near]
    if not rows:
        raise DataError(
            f"the {split} split of {pair[0]}-{pair[1]} has no pair that is new to training; raise "
            "data.split and build the data anew"
        )
    return Pairs(text.a, text.b).select(rows)


def _check_enough(pairs: Pairs, place: str, code: str) -> None:
    distinct = len(set(pairs.pivot))
    if distinct < _LEAST_PAIRS:
        raise DataError(
            f"{distinct} distinct pairs of {code} in {place} are too few to learn from and to hold "
            f"some out; give {_LEAST_PAIRS} or more that are not tested on"
        )


def batches_by_direction(
    subject: Subject, tokenizer: Tokenizer, pairs: Pairs
) -> dict[str, list[Batch]]:
    """Makes batches of similar lengths, by direction.

    Raises:
        DataError: All pairs are too long.
    """
    config, model = subject.config, subject.loaded.model
    text = encode(tokenizer, pairs, config.data.shards.max_sentence_tokens)
    return {
        str(direction): make_batches(text, subject.new, model, config, [direction], _STEP_SENTENCES)
        for direction in subject.directions
    }
