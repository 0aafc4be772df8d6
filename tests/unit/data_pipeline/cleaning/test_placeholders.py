"""Placeholders, as they stand in real catalogs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning.placeholders import normalise_placeholders
from data_pipeline.cleaning.reasons import Reason


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (
            "%(name)s died on %(date)s.",
            "Am %(date)s starb %(name)s.",
            ("{0} died on {1}.", "Am {1} starb {0}."),
        ),
        (
            "{agent} from {country}",
            "{country}から{agent}",
            ("{0} from {1}", "{1}から{0}"),
        ),
        ("%s of %s", "%s von %s", ("{0} of {1}", "{0} von {1}")),
        ("%1$s of %2$s", "%2$s: %1$s", ("{0} of {1}", "{1}: {0}")),
        ("{x} and {x}", "{x} y {x}", ("{0} and {0}", "{0} y {0}")),
        ("Delete %s?", "%sを削除しますか", ("Delete {0}?", "{0}を削除しますか")),
        ("${count} items", "${count} Elemente", ("{0} items", "{0} Elemente")),
        ("$h hours", "$h Stunden", ("{0} hours", "{0} Stunden")),
        ("By {{ author }}", "Von {{author}}", ("By {0}", "Von {0}")),
        ("Record @id@", "Запис @id@", ("Record {0}", "Запис {0}")),
        ("%(rate)s%% tax", "%(rate)s%% MwSt.", ("{0}% tax", "{0}% MwSt.")),
        ("costs $100", "kostet 100 $", ("costs $100", "kostet 100 $")),
        ("a 50% discount", "50% de réduction", ("a 50% discount", "50% de réduction")),
        ("100 %", "100 %", ("100 %", "100 %")),
        ("updated by $1.", "von $1, heute", ("updated by {0}.", "von {0}, heute")),
        ("costs $1.50", "kostet $1.50", ("costs $1.50", "kostet $1.50")),
        ("Copy %1 to %2", "%2 : %1", ("Copy {0} to {1}", "{1} : {0}")),
        ("hdparm -d 1 %1", "mit 1 %1", ("hdparm -d 1 {0}", "mit 1 {0}")),
        ("%1% of %L2", "%1% von %L2", ("{0}% of {1}", "{0}% von {1}")),
        ("50% opaque", "%50 mat", ("50% opaque", "%50 mat")),
        ("%1 is 5 % done", "%1: %5 bitti", ("{0} is 5 % done", "{0}: %5 bitti")),
        ("Copy of %1", "Kopie", Reason.PLACEHOLDERS),
        ("fifty percent", "%50", Reason.PLACEHOLDERS),
        ("%%%s is %d%%", "%d%%: %%%s", ("%{0} is {1}%", "{1}%: %{0}")),
        ("%'d of %*d or %@", "%@ %*d %'d", ("{0} of {1} or {2}", "{2} {1} {0}")),
        ("%qD isn%'t in %<x%>", "%<x%> ohne %qD", ("{0} isn’t in ‘x’", "‘x’ ohne {0}")),
        ("-m64%> and %q+D", "%q+D mit 64%>", ("-m64’ and {0}", "{0} mit 64’")),
        ("~a on ~s:~%", "~s: ~a", ("{0} on {1}: ", "{1}: {0}")),
        ("~a on ~a", "~a, ~a", ("{0} on {1}", "{0}, {1}")),
        ("in ~/a", "in ~/a", ("in ~/a", "in ~/a")),
        ("half %1$ of", "halb %1$ von", Reason.UNKNOWN_MARKUP),
        ("a %* b", "a %* c", Reason.UNKNOWN_MARKUP),
        ("{n} of {m}", "{n} von", Reason.PLACEHOLDERS),
        ("%d files", "%s Dateien", Reason.PLACEHOLDERS),
        ("{x} {x}", "{x}", Reason.PLACEHOLDERS),
        ("open {", "auf {", Reason.UNKNOWN_MARKUP),
        ("{n, plural, one {# day}}", "{n, plural, one {# day}}", Reason.UNKNOWN_MARKUP),
        ("Imported %Y/%m", "Importiert %Y/%m", Reason.UNKNOWN_MARKUP),
        ("[[Main Page]]", "[[Hauptseite]]", Reason.UNKNOWN_MARKUP),
    ],
)
def test_placeholders(a: str, b: str, expected: object) -> None:
    assert normalise_placeholders(a, b) == expected


@given(st.permutations(["%(a)s", "%(b)s", "${c}", "{d}", "@e@"]))
def test_placeholders_follow_their_names_in_any_order(order: list[str]) -> None:
    names = ["%(a)s", "%(b)s", "${c}", "{d}", "@e@"]
    result = normalise_placeholders(" und ".join(names), " or ".join(order))
    assert not isinstance(result, Reason)
    assert result[0] == "{0} und {1} und {2} und {3} und {4}"
    assert result[1] == " or ".join(f"{{{names.index(name)}}}" for name in order)
