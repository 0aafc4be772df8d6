"""One target per text, and a count for each pair that goes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.bitext import SentencePair
from data_pipeline.dedup import DUPLICATE, OTHER_TARGET, deduplicate


def pairs(*rows: tuple[str, str, str]) -> list[SentencePair]:
    return [SentencePair(*row) for row in rows]


def test_the_most_frequent_target_wins() -> None:
    result = deduplicate(
        pairs(
            ("Date", "Termin", "pretix"),
            ("Save", "Speichern", "plone"),
            ("Date", "Datum", "plone"),
            ("Date", "Datum", "gramps"),
            ("Date", "Datum", "gramps"),
        )
    )
    assert result.pairs == pairs(("Save", "Speichern", "plone"), ("Date", "Datum", "plone"))
    assert result.dropped == {
        "pretix": Counter({OTHER_TARGET: 1}),
        "gramps": Counter({DUPLICATE: 2}),
    }


def test_of_equally_frequent_targets_the_first_wins() -> None:
    rows = pairs(("Date", "Termin", "x"), ("Date", "Datum", "x"))
    assert deduplicate(rows).pairs == rows[:1]
    assert deduplicate(rows[::-1]).pairs == rows[1:]


def test_one_target_may_serve_several_texts() -> None:
    rows = pairs(("Delete", "Löschen", "x"), ("Remove", "Löschen", "x"))
    assert deduplicate(rows).pairs == rows


sides = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.builds(SentencePair, sides, sides, sides)))
def test_each_text_is_kept_once_and_each_pair_accounted_for(rows: list[SentencePair]) -> None:
    result = deduplicate(rows)
    assert sorted(pair.a for pair in result.pairs) == sorted({pair.a for pair in rows})
    assert set(result.pairs) <= set(rows)
    dropped = sum(counts.total() for counts in result.dropped.values())
    assert len(result.pairs) + dropped == len(rows)
    for kept in result.pairs:
        votes = Counter(pair.b for pair in rows if pair.a == kept.a)
        assert votes[kept.b] == max(votes.values())
