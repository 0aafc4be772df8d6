"""Accelerators, as they stand in real catalogs."""

from __future__ import annotations

import pytest

from data_pipeline.cleaning.accelerators import strip_accelerators


@pytest.mark.parametrize(
    ("a", "b", "bare_a", "bare_b"),
    [
        ("_File", "_Datei", "File", "Datei"),
        ("E_xit", "Q_uitter", "Exit", "Quitter"),
        ("&Open", "Ö&ffnen", "Open", "Öffnen"),
        ("_Find", "検索(_F)", "Find", "検索"),
        ("_Find", "찾기 (&F)", "Find", "찾기"),
        ("_Place:", "م_كان:", "Place:", "مكان:"),
        ("LDS _Temple:", "Храм _СПД:", "LDS Temple:", "Храм СПД:"),
        ("the file_name", "der file_name", "the file_name", "der file_name"),
        ("MAX_SIZE", "MAX_SIZE", "MAX_SIZE", "MAX_SIZE"),
        ("MAX_SIZE", "größte Zahl", "MAX_SIZE", "größte Zahl"),
        ("AT&T", "AT&T", "AT&T", "AT&T"),
        ("R&D", "F&E", "R&D", "F&E"),
        ("load mod_lisp", "mod_lisp laden", "load mod_lisp", "mod_lisp laden"),
        ("America/Fort_Wayne", "Amerika/Fort_Wayne", "America/Fort_Wayne", "Amerika/Fort_Wayne"),
        ("Name_Editor_dialog", "_Dialog", "Name_Editor_dialog", "Dialog"),
        (
            "Open playlist...",
            "Wiedergabeliste &öffnen …",
            "Open playlist...",
            "Wiedergabeliste öffnen …",
        ),
        ("Mask ball", "ма_ску шару", "Mask ball", "маску шару"),
        ("Show selec_tion", "Aus_wahl zeigen", "Show selection", "Auswahl zeigen"),
        (
            "/Help/_Debug Window",
            "/Hilfe/_Debug-Fenster",
            "/Help/Debug Window",
            "/Hilfe/Debug-Fenster",
        ),
        ("Save as… (_F)", "名前を付けて（&F）", "Save as…", "名前を付けて"),
        ("Find", "検索(~F)", "Find", "検索"),
        ("_Blur & opacity", "_Flou & opacité", "Blur & opacity", "Flou & opacité"),
        ("^Install it", "Es ^installieren", "Install it", "Es installieren"),
        ("sin^2 of x", "sin^2 von x", "sin^2 of x", "sin^2 von x"),
        ("_Editor", "_Editor", "Editor", "Editor"),
        ("a &nosuch; b", "c &nosuch; d", "a &nosuch; b", "c &nosuch; d"),
        ("fi_le", "फ़ा_इल", "file", "फ़ाइल"),
        ("Check-in & Validity", "Check-in & Gültigkeit", "Check-in & Validity", None),
        ("a b c d e f g h _i", "_x", "a b c d e f g h i", "x"),
        ("a b c d e f g h _Bool", "i j _Bool", "a b c d e f g h _Bool", "i j Bool"),
    ],
)
def test_accelerators(a: str, b: str, bare_a: str, bare_b: str | None) -> None:
    assert strip_accelerators(a, b) == (bare_a, bare_b or b)
