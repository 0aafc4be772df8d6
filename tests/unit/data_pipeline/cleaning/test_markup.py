"""Markup, as it stands in real catalogs."""

from __future__ import annotations

import pytest

from data_pipeline.cleaning.markup import strip_markup


@pytest.mark.parametrize(
    ("raw", "bare"),
    [
        ("<strong>plus</strong> tax", "plus tax"),
        ('See <a href="x.html">the guide</a>.', "See the guide."),
        ("Father<br/>Mother", "Father Mother"),
        ("one<!-- not\nthis -->", "one"),
        ("Settings&hellip;", "Settings…"),
        ("Terms &amp; conditions", "Terms & conditions"),
        ("People with <count> children", "People with <count> children"),
        ("a < b and b > c", "a < b and b > c"),
        ("Fi&lter", "Fi&lter"),
        ("Save a &copy", "Save a &copy"),
        ("&copy; &#169; &#xA9; &nosuch; &notit;", "© © © &nosuch; &notit;"),
        ("<para>See <filename>a.txt</filename></para>", " See a.txt "),
        ("Usage: %s <filename>", "Usage: %s <filename>"),
        ("<qt>Bold<br>text</qt>", "Bold text"),
        ("a<nowiki>[</nowiki>b<ref name='x'>c</ref>", "a[bc"),
        ("Run [kbd]git[/kbd][br]now, [a@https://x.y/@_blank]here[/a]", "Run git now, here"),
        ("Set [em]x['y'][/em] [1]", "Set x['y'] [1]"),
        ("<Base> of a <body>building", "<Base> of a building"),
    ],
)
def test_markup(raw: str, bare: str) -> None:
    assert strip_markup(raw) == bare
