"""Figures show the numbers they are given, and can be drawn without a display."""

from __future__ import annotations

import io
import math

import pytest
from matplotlib.figure import Figure

from hyperadapter.config import EvaluationConfig
from hyperadapter.core.languages import known_languages
from hyperadapter.evaluation.report import (
    build_curve_figure,
    build_direction_figure,
    build_matrix_figure,
    score_matrix,
)
from hyperadapter.evaluation.results import DecodingSpeed, DirectionResult, EvaluationResult
from hyperadapter.evaluation.score import BASIC_METRICS, Metric, Scores, score_corpus

REFERENCE = ["the file was not found", "open the menu"]
BETTER, WORSE = ["the file was not seen", "open the menu"], ["a thing", "open it"]


def direction(name: str, hypotheses: list[str]) -> DirectionResult:
    copy: Scores = score_corpus(["xx yy", "menu"], REFERENCE, "de")
    model = score_corpus(hypotheses, REFERENCE, "zh-Hans" if name.endswith("Hans") else "de")
    return DirectionResult(
        direction=name,
        sentences=2,
        near_duplicates=0,
        decoding_s=1.0,
        model=model,
        copy_source=copy,
        model_no_near_duplicates=model,
        copy_source_no_near_duplicates=copy,
    )


@pytest.fixture(scope="module")
def result() -> EvaluationResult:
    speed = DecodingSpeed(
        sentences=4,
        seconds=2.0,
        sentences_per_s=2.0,
        batch_sentences=2,
        beam_size=1,
        device="cpu",
        threads=1,
    )
    return EvaluationResult(
        split="test",
        step=300,
        fingerprint="0",
        weights_sha256="0",
        pivot="en",
        settings=EvaluationConfig(),
        directions=(direction("en-de", BETTER), direction("en-zh-Hans", WORSE)),
        macro={},
        speed=speed,
    )


def drawn(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


@pytest.mark.parametrize("metric", BASIC_METRICS)
def test_bars_of_model_and_copy(result: EvaluationResult, metric: Metric) -> None:
    figure = build_direction_figure(result, metric)
    [axes] = figure.axes
    worse, better = result.directions[1], result.directions[0]
    # Drawn from below: the best direction stands at the top.
    assert [label.get_text() for label in axes.get_yticklabels()] == ["en-zh-Hans", "en-de"]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [
        worse.model.value(metric),
        better.model.value(metric),
        worse.copy_source.value(metric),
        better.copy_source.value(metric),
    ]
    assert axes.get_xlim()[1] > max(widths)
    assert axes.get_title() == "test split, step 300"
    assert drawn(figure).startswith(b"\x89PNG")


def test_signatures_stand_below_the_bars(result: EvaluationResult) -> None:
    label = build_direction_figure(result, "bleu").axes[0].get_xlabel()
    assert label.splitlines()[0] == "BLEU"
    assert sorted(label.splitlines()[1:]) == sorted(
        item.model.bleu.signature for item in result.directions
    )
    assert len(build_direction_figure(result).axes[0].get_xlabel().splitlines()) == 2


def test_figure_grows_with_the_number_of_directions(result: EvaluationResult) -> None:
    many = result.model_copy(update={"directions": result.directions * 30})
    assert build_direction_figure(many).get_figheight() > 15
    assert build_direction_figure(result).get_figheight() < 3


def test_curves() -> None:
    train = [(float(step), 9.0 / step) for step in range(1, 50)]
    valid = [(10.0, 4.0), (20.0, math.inf), (30.0, 2.0)]
    figure = build_curve_figure({"train": train, "valid": valid}, "loss (nats per token)", "run")
    [axes] = figure.axes
    first, second = axes.get_lines()
    assert list(zip(first.get_xdata(), first.get_ydata(), strict=True)) == train
    assert list(second.get_xdata()) == [10.0, 20.0, 30.0]
    assert math.isnan(second.get_ydata()[1])
    assert first.get_color() != second.get_color()
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("loss (nats per token)", "optimizer step")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "valid"]
    assert drawn(figure).startswith(b"\x89PNG")


def test_no_curves_is_an_empty_figure() -> None:
    assert drawn(build_curve_figure({}, "loss", "run")).startswith(b"\x89PNG")


def test_a_matrix_has_a_row_for_each_source_and_a_column_for_each_target() -> None:
    values = {"en-de": 30.0, "de-en": 40.0, "zh-Hans-en": 5.0}
    figure = build_matrix_figure(values, "chrF", "title")
    axes, bar = figure.axes
    rows, columns = (
        [label.get_text() for label in labels]
        for labels in (axes.get_yticklabels(), axes.get_xticklabels())
    )
    assert (rows, columns) == (["en", "de", "zh-Hans"], ["en", "de"])
    table = axes.get_images()[0].get_array().filled(math.nan)
    found = {
        f"{src}-{tgt}": table[i, j]
        for i, src in enumerate(rows)
        for j, tgt in enumerate(columns)
        if not math.isnan(table[i, j])
    }
    assert found == values
    assert sorted(text.get_text() for text in axes.texts) == ["30.0", "40.0", "5.0"]
    assert (axes.get_title(), bar.get_ylabel()) == ("title", "chrF")
    assert drawn(figure).startswith(b"\x89PNG")


def test_differences_part_at_zero_and_have_stars() -> None:
    figure = build_matrix_figure(
        {"en-de": 1.0, "de-en": -4.0}, "BLEU", "x", marked=["de-en"], diverging=True
    )
    image = figure.axes[0].get_images()[0]
    assert image.get_clim() == (-4.0, 4.0)
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["+1.0", "-4.0*"]
    # No difference at all can be drawn too.
    assert drawn(build_matrix_figure({"en-de": 0.0}, "x", "x", diverging=True))


def test_a_matrix_of_many_languages_has_colours_only() -> None:
    codes = known_languages()[:60]
    figure = build_matrix_figure({f"en-{code}": 1.0 for code in codes if code != "en"}, "x", "x")
    assert not figure.axes[0].texts
    assert figure.get_figwidth() > 20
    assert figure.get_figheight() < 6


def test_the_matrix_of_a_result(result: EvaluationResult) -> None:
    expected = {item.direction: item.model.bleu.value for item in result.directions}
    assert score_matrix(result, "bleu") == expected
