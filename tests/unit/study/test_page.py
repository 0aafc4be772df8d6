"""The page: self-contained, the same for the same results, and safe with any name."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hyperadapter.study.figures import plot_results
from hyperadapter.study.page import summary_of, write_page
from hyperadapter.study.results import Group, Results, Row
from tests.unit.study.report_material import HOSTILE, make_point, make_results

RUN = "http://mlflow.example/#/experiments/1/runs/ab"


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def study() -> Results:
    best = Row(
        make_point(HOSTILE, HOSTILE, 2, 1), "DONE", run_id="ab", link=RUN, step=100, tokens=9e5,
        flops=1.2e12, loss=2.5, score=21.25, macro={HOSTILE: 3.0},
        groups={HOSTILE: Group(3, 2.75, None)},
    )  # fmt: skip
    worse = Row(make_point("worse", HOSTILE, 1, 1), "RUNNING", run_id="cd", step=50, loss=2.0)
    failed = Row(
        make_point("failed", "none", 1, 1), "FAILED", why=f"loss is nan {HOSTILE}", run_id="ef",
        step=7, loss=math.nan,
    )  # fmt: skip
    waiting = Row(make_point("waiting", "none", 2, 1), "WAITING")
    return make_results((best, worse, failed, waiting), study=HOSTILE, description=HOSTILE)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    results = study()
    write_page(results, plot_results(results, folder), folder / "index.html", f"report {HOSTILE}")
    return (folder / "index.html").read_text(encoding="utf-8")


def test_it_needs_nothing_from_elsewhere(html: str) -> None:
    page = Page(html)
    sources = [
        value
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "data", "action") or (name == "href" and tag != "a")
    ]
    assert len(sources) == 4
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert "@import" not in html
    assert "url(" not in html
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert links == {RUN}


def test_names_are_text_and_no_markup(html: str) -> None:
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "alert(" not in "".join(re.findall(r"<script>.*?</script>", html, re.DOTALL))
    assert not any("onerror" in attributes for _, attributes in page.tags)
    # Title, heading, question, best run, its series, groups, metrics, reason, command, table.
    assert page.text.count(HOSTILE) >= 10


def test_it_says_what_was_found(html: str) -> None:
    page = Page(html)
    for text in ("2.5000", "21.25", "2.7500", "1.2e+12", "model.d_model", "64 (2), 128 (3)",
                 "http://***@mlflow.example", "2023-11-14 22:13:20 UTC", "1: old", "loss is nan",
                 "4 points, fingerprint "):  # fmt: skip
        assert text in page.text, text
    states = re.search(r"<th>all</th></tr></thead>\s*<tbody><tr>(.*?)</tr>", html)
    assert states is not None
    assert re.findall(r">(\d+)<", states.group(1)) == ["1", "1", "0", "1", "1", "4"]
    assert 'data-key="2.5"' in html
    assert 'data-key="NaN"' not in html  # no browser could read it: it is sorted as unknown
    keys = [attributes["data-key"] for _, attributes in page.tags if "data-key" in attributes]
    assert "null" in keys


def test_the_same_results_give_the_same_page(html: str, tmp_path: Path) -> None:
    results = study()
    figures = plot_results(results, tmp_path)
    write_page(results, figures, tmp_path / "again.html", f"report {HOSTILE}")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_a_study_that_has_not_begun(tmp_path: Path) -> None:
    waiting = Row(make_point("waiting", "none", 2, 1), "WAITING")
    write_page(make_results((waiting,)), [], tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert "No run has a loss or a score yet" in text
    assert "There is nothing to draw yet" in text


def test_the_summary() -> None:
    summary = summary_of(study())
    assert summary["states"] == {
        "DONE": 1, "RUNNING": 1, "STOPPED": 0, "FAILED": 1, "WAITING": 1
    }  # fmt: skip
    assert [(best["point"], best["loss"]) for best in summary["best_loss"]] == [(HOSTILE, 2.5)]
    assert summary["strangers"] == ["old"]
