"""What cleaning and statistics know about the scripts of the world."""

from __future__ import annotations

__all__ = ["SCRIPT_NAMES", "UNSPACED_CHARACTERS", "UNSPACED_SCRIPTS"]

# The first word of a letter's Unicode name tells its script.
SCRIPT_NAMES: dict[str, frozenset[str]] = {
    code: frozenset(names.split())
    for code, names in {
        "Arab": "ARABIC",
        "Armn": "ARMENIAN",
        "Beng": "BENGALI",
        "Cakm": "CHAKMA",
        "Cans": "CANADIAN",
        "Cher": "CHEROKEE",
        "Copt": "COPTIC",
        "Cyrl": "CYRILLIC",
        "Deva": "DEVANAGARI",
        "Ethi": "ETHIOPIC",
        "Geor": "GEORGIAN",
        "Goth": "GOTHIC",
        "Grek": "GREEK",
        "Gujr": "GUJARATI",
        "Guru": "GURMUKHI",
        "Hans": "CJK",
        "Hant": "CJK BOPOMOFO",
        "Hebr": "HEBREW",
        "Jpan": "CJK HIRAGANA KATAKANA KATAKANA-HIRAGANA IDEOGRAPHIC",
        "Khmr": "KHMER",
        "Knda": "KANNADA",
        "Kore": "HANGUL CJK",
        "Laoo": "LAO",
        "Latn": "LATIN",
        "Mlym": "MALAYALAM",
        "Mong": "MONGOLIAN",
        "Mtei": "MEETEI",
        "Mymr": "MYANMAR",
        "Nkoo": "NKO",
        "Olck": "OL",
        "Orya": "ORIYA",
        "Shaw": "SHAVIAN",
        "Sinh": "SINHALA",
        "Sylo": "SYLOTI",
        "Syrc": "SYRIAC",
        "Tale": "TAI",
        "Taml": "TAMIL",
        "Telu": "TELUGU",
        "Tfng": "TIFINAGH",
        "Thaa": "THAANA",
        "Thai": "THAI",
        "Tibt": "TIBETAN",
    }.items()
}

# Scripts that write no spaces between words, and their characters, as for a set of a regular
# expression.
UNSPACED_SCRIPTS = frozenset({"Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt"})
UNSPACED_CHARACTERS = (
    r"\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"  # Han, kana
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff"  # Thai, Lao, Tibetan, Burmese, Khmer
)
