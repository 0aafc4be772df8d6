"""From raw text to the clean corpus: the contract of its files, and what stops it."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.bitext import SPLITS, SentencePair, iter_pairs, read_split
from data_pipeline.cleaning import corpus_builder, near_duplicates, pair_corpus
from data_pipeline.cleaning.clean import PairCleaner
from data_pipeline.cleaning.clean_manifest import CleanManifest, read_manifest
from data_pipeline.cleaning.corpus import build_clean_corpus, clean_folder
from data_pipeline.cleaning.corpus_inputs import RULES_VERSION
from data_pipeline.cleaning.split import split_of
from data_pipeline.config import DataConfig, LeakTest, SplitConfig
from data_pipeline.sources import CatalogSource, SourceConfig
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import sha256_file, write_text

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
        num_workers=1,
    )


def with_split(config: DataConfig, **changes: Any) -> DataConfig:
    return config.model_copy(update={"split": config.split.model_copy(update=changes)})


def files_of(config: DataConfig) -> dict[str, bytes]:
    folder = clean_folder(config)
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


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
    files = files_of(config)
    kinds = ("train", "valid", "test", "held_out/valid", "held_out/test")
    wanted = {f"{kind}/en-{code}.tsv" for kind in kinds for code in ("de", "cs")}
    assert set(files) == wanted | {"manifest.json", "pairs/en-de.json", "pairs/en-cs.json"}
    assert files_of(again) == files


@pytest.mark.slow
def test_processes_and_pieces_leave_no_trace_in_the_text(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several processes and parts, the settings of which spawned ones do not see."""
    build_clean_corpus(config)
    parted = config.model_copy(update={"folder": str(tmp_path / "parted"), "num_workers": 2})
    monkeypatch.setattr(corpus_builder, "_PARALLEL_FROM_BYTES", 0)
    monkeypatch.setattr(corpus_builder, "_PART_BYTES", 2_000)
    monkeypatch.setattr(pair_corpus, "_PARALLEL_FROM_BYTES", 0)
    monkeypatch.setattr(pair_corpus, "_BUCKET_BYTES", 1_000)
    build_clean_corpus(parted)
    assert files_of(parted) == files_of(config)


def test_parts_buckets_and_pieces_leave_no_trace_in_the_text(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_clean_corpus(config)
    parted = config.model_copy(update={"folder": str(tmp_path / "parted")})
    monkeypatch.setattr(corpus_builder.CorpusBuilder, "workers", 3)
    monkeypatch.setattr(corpus_builder, "_PART_BYTES", 2_000)
    monkeypatch.setattr(
        corpus_builder,
        "parallel_map",
        lambda function, items, *_: ((item, function(item)) for item in reversed(items)),
    )
    monkeypatch.setattr(pair_corpus, "_PART_ROWS", 7)
    monkeypatch.setattr(pair_corpus, "_BUCKET_BYTES", 1_000)
    monkeypatch.setattr(pair_corpus, "_LEAK_ROWS", 10)
    monkeypatch.setattr(near_duplicates, "_BATCH_ROWS", 10)
    monkeypatch.setattr(near_duplicates, "_PIECE_BYTES", 500)
    build_clean_corpus(parted)
    assert files_of(parted) == files_of(config)


def test_a_build_that_is_stopped_anywhere_goes_on(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before every fifth file that gets its name, again and again until it is done."""
    build_clean_corpus(config)
    stopped = config.model_copy(update={"folder": str(tmp_path / "stopped")})
    replace = os.replace
    num_left = 0
    written: Counter[str] = Counter()

    def stopping_replace(source: Path, target: Path) -> None:
        nonlocal num_left
        num_left -= Path(source).is_file()
        if not num_left:
            raise KeyboardInterrupt
        written[Path(target).name] += 1
        replace(source, target)

    monkeypatch.setattr("hyperadapter.core.files.os.replace", stopping_replace)
    num_stops = 0
    while True:
        num_left = 5 + num_stops  # so that no stop keeps it from going on for ever
        try:
            build_clean_corpus(stopped)
            break
        except KeyboardInterrupt:
            num_stops += 1
            assert read_manifest(clean_folder(stopped)) is None
    assert num_stops > 2
    assert files_of(stopped) == files_of(config)
    # The record of a pair comes last, and its text is not made again after that.
    assert [written["en-de.json"], written["en-cs.json"]] == [1, 1]


def test_what_a_killed_process_left_is_removed(config: DataConfig) -> None:
    part = clean_folder(config).with_name("clean.part")
    for name in ("manifest.json.7.part", "train/en-de.tsv.7.part", "work/x/0-0-of-1.spill.7.part"):
        write_text(part / name, "half")
    write_text(part / ".fingerprint", f"rules {RULES_VERSION}")
    build_clean_corpus(config)
    assert not [name for name in files_of(config) if name.endswith(".part")]


def test_codes_of_catalogs_that_nobody_knows_are_told(
    config: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for code in ("de", "qqq"):
        write_text(
            tmp_path / "po" / f"{code}.po",
            'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
            'msgid "a new text"\nmsgstr "ein neuer Text"\n',
        )
    catalog = CatalogSource(format="gettext", name="po", paths=(str(tmp_path / "po"),))
    manifest = build_clean_corpus(config.model_copy(update={"sources": (*config.sources, catalog)}))
    assert manifest.unknown_languages == {"po": {"qqq": 1}}
    assert manifest.sources["en-de"]["po"].num_kept == 1
    assert "source po: 1 files have language codes that are not in the table" in caplog.text


def test_a_pair_is_not_cleaned_again_when_another_is_added(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    german = config.model_copy(update={"directions": ("en-de",)})
    first = build_clean_corpus(german)
    read: list[str] = []

    def watched(source: SourceConfig, *rest: Any) -> Iterator[SentencePair]:
        read.append(source.name)
        return iter_pairs(source, *rest)

    monkeypatch.setattr(pair_corpus, "iter_pairs", watched)
    both = build_clean_corpus(config)
    assert read == ["toy-cs"]
    assert both.sources["en-de"] == first.sources["en-de"]
    fresh = config.model_copy(update={"folder": str(tmp_path / "fresh")})
    build_clean_corpus(fresh)
    assert files_of(config) == files_of(fresh)
    assert build_clean_corpus(german) == first
    assert not any("cs" in name for name in files_of(config))


def test_near_duplicates_can_be_dropped_without_cleaning_again(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts here are all near-duplicates of each other, apart from those that are added."""
    with open(tmp_path / "toy-de.tsv", "a", encoding="utf-8") as stream:
        stream.writelines(
            f"{x}u {y}e {x}{y}\t{x}i {y}a o{y}{x}\n" for x in "bdfgk" for y in LETTERS
        )
    config = config.model_copy(update={"directions": ("en-de",)})
    marked = build_clean_corpus(config)
    text = read_split(clean_folder(config), "test", ("en", "de"))
    unmarked = [a for a, mark in zip(text.a, text.near_duplicate, strict=True) if not mark]
    monkeypatch.setattr(pair_corpus, "iter_pairs", None)
    dropping = with_split(config, near_duplicates="drop")
    dropped = build_clean_corpus(dropping)
    text = read_split(clean_folder(config), "test", ("en", "de"))
    assert text.a == unmarked
    assert not any(text.near_duplicate)
    num_marked = sum(s.num_near_duplicates for s in marked.splits["en-de"].values())
    assert dropped.sources["en-de"]["toy-de"].dropped["near-duplicate of train"] == num_marked > 0
    assert dropped.splits["en-de"]["test"].num_pairs == len(unmarked) > 0
    assert dropped.splits["en-de"]["train"] == marked.splits["en-de"]["train"]
    assert_counts_add_up(dropped)


def test_a_split_that_only_had_near_duplicates_is_told(config: DataConfig) -> None:
    with pytest.raises(DataError, match=r"en-de: valid and test has no sentence pairs \(train"):
        build_clean_corpus(with_split(config, near_duplicates="drop"))


def test_sentences_of_test_sets_are_not_trained_on(config: DataConfig, tmp_path: Path) -> None:
    before = read_train(config)
    leaked = next(text for text in before if text in ENGLISH[::2])  # Czech has it too
    other = next(text for text in before if text[0] != leaked[0])
    path = tmp_path / "test.de"
    path.write_text(f"{translate(leaked, 'de').upper()}!\nEtwas ganz anderes.\n", encoding="utf-8")
    tests = (
        LeakTest(name="toy", language="de", path=str(path)),
        LeakTest(name="other", language="cs", path=str(path)),
    )
    leaking = with_split(config, leak_tests=tests, near_duplicate_containment=1.0)
    manifest = build_clean_corpus(leaking)
    after = read_split(clean_folder(config), "train", ("en", "de")).a
    assert set(before) - set(after) == {leaked}
    assert other in after
    assert manifest.sources["en-de"]["toy-de"].dropped["stands in test set toy"] == 1
    assert manifest.leak_tests["toy"].model_dump() == {"num_sentences": 2, "num_found": 1}
    assert manifest.leak_tests["other"].num_found == 0
    assert leaked in read_split(clean_folder(config), "train", ("en", "cs")).a
    assert_counts_add_up(manifest)
    path.write_text("Etwas ganz anderes.\n", encoding="utf-8")
    assert build_clean_corpus(leaking).leak_tests["toy"].num_found == 0


def read_train(config: DataConfig) -> list[str]:
    build_clean_corpus(config)
    return read_split(clean_folder(config), "train", ("en", "de")).a


def test_a_test_set_that_cannot_be_used_is_told_at_once(config: DataConfig, tmp_path: Path) -> None:
    french = LeakTest(name="toy", language="fr", path=str(tmp_path))
    why = r"'toy' is in 'fr', which no language pair has \(cs, de, en\); correct its language"
    with pytest.raises(ConfigError, match=why):
        build_clean_corpus(with_split(config, leak_tests=(french,)))
    missing = LeakTest(name="toy", language="de", path=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"the file .*none of 'toy' does not exist; correct"):
        build_clean_corpus(with_split(config, leak_tests=(missing,)))


def assert_counts_add_up(manifest: CleanManifest) -> None:
    for name, sources in manifest.sources.items():
        splits = manifest.splits[name].values()
        assert sum(s.num_pairs for s in splits) == sum(c.num_kept for c in sources.values())
        for counts in sources.values():
            assert counts.num_read == counts.num_kept + sum(counts.dropped.values())


sides = st.sampled_from(["", "a|b", "same", "Save it now", "save it", "one two three four", "x"])


@settings(max_examples=8)
@given(
    st.lists(st.lists(st.tuples(sides, sides), max_size=12), min_size=2, max_size=2),
    st.sampled_from(["mark", "drop"]),
)
def test_every_text_of_a_build_is_accounted_for(
    make_config: MakeConfig,
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[list[tuple[str, str]]],
    near_duplicates: str,
) -> None:
    folder = tmp_path_factory.mktemp("counts")
    fill = [(f"{text} {i}", f"{text} de") for i, text in enumerate(ENGLISH[:40])]
    sources = [write_tsv(folder, f"{i}-de", fill + rows) for i, rows in enumerate(texts)]
    test = write_tsv(folder, "test", fill[:3])
    config = make_config(
        folder / "data",
        languages=("en", "de"),
        sources=sources,
        clean={"max_english_copy": 1.0},
        split={
            "valid_fraction": 0,
            "test_fraction": 0.3,
            "near_duplicates": near_duplicates,
            "near_duplicate_containment": 1.0,
            "leak_tests": [{"name": "toy", "language": "en", "path": test["path"]}],
        },
        num_workers=1,
    )
    manifest = build_clean_corpus(config)
    assert_counts_add_up(manifest)
    for number, rows in enumerate(texts):
        assert manifest.sources["en-de"][f"{number}-de"].num_read == len(fill) + len(rows)
    for split in SPLITS:
        counts = manifest.splits["en-de"][split]
        path = clean_folder(config) / split / "en-de.tsv"
        assert counts.num_bytes == path.stat().st_size
        assert counts.sha256 == sha256_file(path)
        assert counts.num_pairs == sum(counts.pairs_by_source.values())


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


def test_a_file_that_changes_while_it_is_read_is_told_and_read_again(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(config.sources[0].path)  # type: ignore[union-attr]
    whole = path.read_text(encoding="utf-8")
    clean = PairCleaner.clean

    def change(self: PairCleaner, a: str, b: str) -> Iterator[tuple[str, str]]:
        path.write_text(f"more text\tmehr Text\n{whole}", encoding="utf-8")
        return clean(self, a, "Ganz anders")

    monkeypatch.setattr(PairCleaner, "clean", change)
    with pytest.raises(DataError, match=r"changed while .*toy-de\.tsv of source 'toy-de'\. Build"):
        build_clean_corpus(config)
    monkeypatch.undo()
    path.write_text(whole, encoding="utf-8")
    build_clean_corpus(config)
    assert "Ganz anders" not in read_split(clean_folder(config), "train", ("en", "de")).b


def test_a_file_that_only_has_another_time_has_not_changed(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = PairCleaner.clean

    def touch(self: PairCleaner, a: str, b: str) -> Iterator[tuple[str, str]]:
        os.utime(config.sources[0].path, (1, 1))  # type: ignore[union-attr]
        return clean(self, a, b)

    monkeypatch.setattr(PairCleaner, "clean", touch)
    build_clean_corpus(config)
    assert read_manifest(clean_folder(config)) is not None


def test_few_held_out_pairs_are_warned_of(
    config: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    build_clean_corpus(config)
    assert "fewer than" not in caplog.text
    manifest = build_clean_corpus(with_split(config, valid_fraction=0.02))
    counts = [manifest.splits[pair]["valid"].num_pairs for pair in ("en-de", "en-cs")]
    assert 0 < min(counts) <= max(counts) < 10
    told = "fewer than 10 held-out sentence pairs: en-de (valid {}), en-cs (valid {})\n"
    assert told.format(*counts) in caplog.text


def test_files_that_no_reader_reads_are_counted_and_told(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "po"
    folder.mkdir()
    rows = "".join(f'msgid "{x}"\nmsgstr "{translate(x, "de")}"\n\n' for x in ENGLISH)
    (folder / "de.po").write_text(rows, encoding="utf-8")
    for name in ("fr.po.gz", "es.po.gz", "all.tar"):
        (folder / name).touch()
    source = {"format": "gettext", "name": "catalog", "paths": [str(folder)]}
    config = make_config(tmp_path / "data", languages=("en", "de"), sources=[source], num_workers=1)
    manifest = build_clean_corpus(config)
    assert manifest.ignored_files == {"catalog": {".gz": 2, ".tar": 1}}
    told = "source catalog: 3 files are not of the format gettext and are not read: "
    assert f"{told}{folder}/all.tar, {folder}/es.po.gz, {folder}/fr.po.gz" in caplog.text
