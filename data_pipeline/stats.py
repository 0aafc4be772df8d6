"""What the clean corpus holds, for tables and a picture. Nothing is printed here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data_pipeline.bitext import SPLITS
from data_pipeline.corpus import CleanManifest, SourceCounts, SplitCounts, read_manifest
from hyperadapter.core.errors import DataError
from hyperadapter.core.files import atomic_open

__all__ = ["corpus_stats", "plot_corpus"]

_BAR_INCHES = 0.35


def corpus_stats(folder: Path) -> dict[str, Any]:
    """Returns the counts of a clean corpus as plain values.

    Args:
        folder: The clean corpus: `clean` in the data folder.

    Returns:
        `pairs`: by language pair the sentence pairs of each split, the near-duplicates among the
        held-out ones, words and mean words of train a side (separated by white space, which some
        scripts do not write), train pairs by source, texts read and kept, and texts dropped by
        reason. `dropped`, `num_read`, `num_kept`: the same over all pairs.

    Raises:
        DataError: There is no clean corpus.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(
            f"{folder} holds no clean corpus; build it first with `hyperadapter data clean`"
        )
    pairs = {name: _pair_stats(name, manifest) for name in manifest.splits}
    every = [counts for sources in manifest.sources.values() for counts in sources.values()]
    return {
        "fingerprint": manifest.fingerprint,
        "num_read": sum(counts.num_read for counts in every),
        "num_kept": sum(counts.num_kept for counts in every),
        "dropped": _sum_dropped(every),
        "pairs": pairs,
    }


def _pair_stats(name: str, manifest: CleanManifest) -> dict[str, Any]:
    splits: dict[str, SplitCounts] = manifest.splits[name]
    sources = list(manifest.sources[name].values())
    train = splits["train"]
    return {
        **{split: splits[split].num_pairs for split in SPLITS},
        "near_duplicates": sum(splits[split].num_near_duplicates for split in SPLITS),
        "words_a": train.words_a,
        "words_b": train.words_b,
        "mean_words_a": train.words_a / max(train.num_pairs, 1),
        "mean_words_b": train.words_b / max(train.num_pairs, 1),
        "mean_characters_a": train.characters_a / max(train.num_pairs, 1),
        "mean_characters_b": train.characters_b / max(train.num_pairs, 1),
        "train_by_source": dict(train.pairs_by_source),
        "num_read": sum(counts.num_read for counts in sources),
        "num_kept": sum(counts.num_kept for counts in sources),
        "dropped": _sum_dropped(sources),
    }


def _sum_dropped(counts: list[SourceCounts]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one.dropped)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def plot_corpus(stats: dict[str, Any], path: Path) -> None:
    """Draws the training pairs of each language pair, stacked by source, into an image file.

    Args:
        stats: What `corpus_stats` returned.
        path: The image; its ending chooses the format, such as `.png` or `.svg`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs = stats["pairs"]
    names = sorted(pairs, key=lambda name: (-pairs[name]["train"], name))
    sources = list(dict.fromkeys(s for name in names for s in pairs[name]["train_by_source"]))
    figure = Figure(figsize=(7, 1.5 + _BAR_INCHES * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    start = [0] * len(names)
    for source in sources:
        width = [pairs[name]["train_by_source"].get(source, 0) for name in names]
        axes.barh(names, width, left=start, label=source)
        start = [a + b for a, b in zip(start, width, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("sentence pairs in train")
    axes.set_title("Clean corpus by language pair and source")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format=path.suffix.lstrip(".") or "png", dpi=120)
