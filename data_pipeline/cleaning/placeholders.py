"""Placeholders of many notations, renamed to one: `{0}`, `{1}`, ..."""

from __future__ import annotations

import re
from collections import Counter

__all__ = ["Mismatch", "rename_placeholders"]

_CONVERSION = (
    r"(?:[-#0+]*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?:hh?|ll?|[Ljztqw])?[diouxXeEfFgGcrspn@]"
    r"|q[+#]*[A-Za-z])"  # gcc: %qs, %q+D
)
