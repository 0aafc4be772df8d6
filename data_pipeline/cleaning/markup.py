"""Markup in texts of user interfaces: HTML, DocBook, and the square brackets of phpMyAdmin."""

from __future__ import annotations

import html
import re
from html.entities import html5

__all__ = ["strip_markup"]

# Tags that HTML has and user interfaces use, Qt's and MediaWiki's own too. `<count>` and `<text>`
# are text: gramps writes "People with <count> children".
_TAGS = (
    "a|abbr|b|big|blockquote|body|br|button|center|cite|code|dd|del|div|dl|dt|em|font|footer|h[1-6]"
    "|head|hr|html|i|img|input|ins|kbd|label|li|mark|nobr|nowiki|ol|p|pre|qt|s|samp|script|section"
    "|small|span|strike|strong|style|sub|sup|table|tbody|td|tfoot|th|thead|tr|tt|u|ul|var"
)
_TAG = re.compile(rf"<(/?)({_TAGS})\b[^<>]*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_BLOCK_TAGS = "br|p|div|li|ul|ol|h[1-6]|hr|d[dlt]|t[dhr]|table|pre|blockquote"
_BLOCK = re.compile(_BLOCK_TAGS, re.IGNORECASE)

# Names that stand for something where they are alone, as in "Usage: %s <filename>": these are tags
# only where they are closed.
_PAIRED_TAGS = (
    "application|caption|command|email|emphasis|envar|filename|gui(?:button|icon|label|menu(?:item)?)"
    "|icode|interface|item|keycap|keycombo|link|list|literal|menuchoice|note|numid|option|para|ref"
    "|replaceable|resource|screen|shortcut|tip|title|ulink|userinput|warning"
)
_PAIRED = re.compile(rf"<({_PAIRED_TAGS})\b[^<>]*>([^<>]*)</\1>", re.IGNORECASE)
_PAIRED_BLOCKS = {"caption", "item", "list", "note", "para", "screen", "tip", "title", "warning"}

_BRACKETS = re.compile(r"\[(a|b|code|doc|em|i|kbd|strong|sup)(?:@[^\[\]]*)?\](.*?)\[/\1\]")

# Without the semicolon, an ampersand is rather an accelerator: "Fi&lter", "Save a &copy".
_ENTITY = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|(\w+));")


def strip_markup(text: str) -> str:
    """Removes tags and comments, then resolves entities such as `&hellip;`."""
    if "<" in text:
        text = _TAG.sub(_without_tag, text)
        if "</" in text:
            text = _without_pairs(_PAIRED, text)
    if "[/" in text:
        text = _without_pairs(_BRACKETS, text).replace("[br]", " ")
    return _ENTITY.sub(_character, text) if "&" in text else text


def _without_tag(match: re.Match[str]) -> str:
    name = match[2]
    return " " if name and _BLOCK.fullmatch(name) else ""


def _without_pairs(pattern: re.Pattern[str], text: str) -> str:
    """Replaces elements by what they hold, the innermost first."""
    count = 1
    while count:
        text, count = pattern.subn(_content, text)
    return text


def _content(match: re.Match[str]) -> str:
    return f" {match[2]} " if match[1].lower() in _PAIRED_BLOCKS else match[2]


def _character(match: re.Match[str]) -> str:
    """Returns what an entity stands for; one that HTML does not know stays."""
    return html5.get(f"{match[1]};", match[0]) if match[1] else html.unescape(match[0])
