"""Pictures of what `stats.py` counted, readable for a few language pairs and for hundreds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperadapter.core.files import atomic_open

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_corpus", "plot_drops", "plot_tokenizer"]

_BAR_INCHES = 0.28
_MAX_BARS = 40  # language pairs with a bar of their own
_MAX_PARTS = 9  # colours that can be told apart, and one for all others
_LEGEND_CHARACTERS = 22  # of a label, so that four stand side by side
_LANGUAGES_A_ROW = 50

Bars = dict[str, Mapping[str, int]]


def plot_corpus(stats: dict[str, Any], path: Path) -> None:
    """Draws the training pairs of each language pair, stacked by source, into an image file.

    Args:
        stats: What `corpus_stats` returned.
        path: The image; its ending chooses the format, such as `.png` or `.svg`.
    """
    bars = {name: pair["train_by_source"] for name, pair in stats["pairs"].items()}
    _plot_stacked(bars, "sentence pairs in train", "Clean corpus by language pair and source", path)


def plot_drops(stats: dict[str, Any], path: Path) -> None:
    """Draws the texts of each language pair that were dropped, stacked by reason.

    Args:
        stats: What `corpus_stats` returned.
        path: The image.
    """
    bars = {name: pair["dropped"] for name, pair in stats["pairs"].items()}
    _plot_stacked(bars, "texts dropped", "Dropped by language pair and reason", path)


def plot_tokenizer(stats: dict[str, Any], path: Path) -> None:
    """Draws length, fertility, coverage and script of each language, the most pieces first.

    Args:
        stats: What `tokenizer_stats` returned.
        path: The image.
    """
    languages = stats["languages"]
    codes = sorted(languages, key=lambda code: (-languages[code]["pieces_per_character"], code))
    rows = [codes[i : i + _LANGUAGES_A_ROW] for i in range(0, len(codes), _LANGUAGES_A_ROW)]
    bars = {
        "pieces\nper character": {c: languages[c]["pieces_per_character"] for c in codes},
        "% of characters not\nin the vocabulary": _percent_missing(languages, "coverage"),
        "% of letters in\nanother script": _percent_missing(languages, "in_script"),
    }
    num_panels = 1 + len(bars)
    figure = _new_figure(2 + 0.22 * max(len(rows[0]), 24), 1 + 1.6 * num_panels * len(rows))
    axes = figure.subplots(num_panels * len(rows), 1, squeeze=False)[:, 0]
    for number, row in enumerate(rows):
        lengths, *panels = axes[num_panels * number : num_panels * (number + 1)]
        _draw_lengths(lengths, row, languages)
        for panel, (label, values) in zip(panels, bars.items(), strict=True):
            panel.bar(row, [values[code] for code in row])
            panel.set_ylabel(label, fontsize="small")
            panel.set_ylim(0, 1.05 * max(values.values()) or 1)
        for panel in (lengths, *panels):
            panel.tick_params(axis="x", labelrotation=90)
            panel.set_xlim(-0.6, len(rows[0]) - 0.4)
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    figure.suptitle(f"Tokenizer of {stats['vocab_size']:,} pieces by language")
    _save(figure, path)


def _percent_missing(languages: dict[str, Any], key: str) -> dict[str, float]:
    """Returns by language what a share lacks of all, 0 where it is not known."""
    shares = {code: language[key] for code, language in languages.items()}
    return {code: 0.0 if share is None else 100 * (1 - share) for code, share in shares.items()}


def _draw_lengths(axes: Axes, row: list[str], languages: dict[str, Any]) -> None:
    """Draws percentiles of sentence length, joined by a line a language."""
    lengths = [languages[code]["length"] for code in row]
    names = list(lengths[0])
    axes.vlines(row, [one[names[0]] for one in lengths], [one[names[-1]] for one in lengths])
    for name, marker in zip(names, "os^", strict=True):
        axes.scatter(row, [one[name] for one in lengths], s=14, marker=marker, label=name)
    axes.set_ylabel("tokens a sentence", fontsize="small")
    axes.set_ylim(0, 1.05 * max(one["length"][names[-1]] for one in languages.values()))


def _plot_stacked(bars: Bars, label: str, title: str, path: Path) -> None:
    """Draws one bar a name, the longest first; those beyond `_MAX_BARS` share the last one."""
    names = sorted(bars, key=lambda name: (-sum(bars[name].values()), name))
    shown = {name: bars[name] for name in names[:_MAX_BARS]}
    if rest := names[_MAX_BARS:]:
        shown[f"{len(rest)} others, mean"] = _mean([bars[name] for name in rest])
    total: Counter[str] = Counter()
    for parts in bars.values():
        total.update(parts)
    most = [part for part, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))]
    figure = _new_figure(8, 1.8 + _BAR_INCHES * len(shown))
    axes = figure.add_subplot()
    start = [0] * len(shown)
    for group in [*([part] for part in most[:_MAX_PARTS]), most[_MAX_PARTS:]]:
        if not group:
            continue
        name = group[0] if group[0] in most[:_MAX_PARTS] else f"{len(group)} others"
        width = [sum(parts.get(part, 0) for part in group) for parts in shown.values()]
        axes.barh(list(shown), width, left=start, label=name)
        start = [a + b for a, b in zip(start, width, strict=True)]
    axes.invert_yaxis()
    axes.margins(y=0.5 / max(len(shown), 1))
    axes.set_xlabel(label)
    axes.set_title(title)
    if most:
        widest = max(map(len, most[:_MAX_PARTS]))
        columns = 2 if widest > _LEGEND_CHARACTERS else 4
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    _save(figure, path)


def _mean(bars: list[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for parts in bars:
        total.update(parts)
    return {part: round(count / len(bars)) for part, count in total.items()}


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format=path.suffix.lstrip(".") or "png", dpi=120)
