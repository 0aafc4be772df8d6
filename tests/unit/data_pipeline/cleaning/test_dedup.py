"""One target per text, and a count for each pair that goes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning.dedup import DUPLICATE, OTHER_TARGET, deduplicate
from data_pipeline.cleaning.spill import Row

PLONE, GRAMPS, PRETIX = range(3)


def rows_of(*rows: tuple[str, str, int]) -> list[Row]:
    return [Row(source, number, "train", a, b) for number, (a, b, source) in enumerate(rows)]


def test_the_most_frequent_target_wins() -> None:
    rows = rows_of(
        ("Date", "Termin", PRETIX),
        ("Save", "Speichern", PLONE),
        ("Date", "Datum", PLONE),
        ("Date", "Datum", GRAMPS),
        ("Date", "Datum", GRAMPS),
    )
    result = deduplicate(rows)
    assert result.rows == [rows[1], rows[2]]
    assert result.dropped == {
        PRETIX: Counter({OTHER_TARGET: 1}),
        GRAMPS: Counter({DUPLICATE: 2}),
    }


def test_of_equally_frequent_targets_the_first_wins() -> None:
    rows = rows_of(("Date", "Termin", PLONE), ("Date", "Datum", PLONE))
    assert deduplicate(rows).rows == rows[:1]
    assert deduplicate(rows[::-1]).rows == rows[1:]


def test_one_target_may_serve_several_texts() -> None:
    rows = rows_of(("Delete", "Löschen", PLONE), ("Remove", "Löschen", PLONE))
    assert deduplicate(rows).rows == rows


sides = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.tuples(sides, sides, st.integers(0, 2))).map(lambda rows: rows_of(*rows)))
def test_each_text_is_kept_once_and_each_pair_accounted_for(rows: list[Row]) -> None:
    result = deduplicate(rows)
    assert sorted(row.a for row in result.rows) == sorted({row.a for row in rows})
    assert set(result.rows) <= set(rows)
    dropped = sum(counts.total() for counts in result.dropped.values())
    assert len(result.rows) + dropped == len(rows)
    for kept in result.rows:
        votes = Counter(row.b for row in rows if row.a == kept.a)
        assert votes[kept.b] == max(votes.values())
