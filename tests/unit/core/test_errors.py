"""Exit codes and suggestions."""

from __future__ import annotations

import inspect

import pytest

from hyperadapter.core import errors
from hyperadapter.core.errors import HyperAdapterError, nearest

CLASSES: list[type[HyperAdapterError]] = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, HyperAdapterError)
]


def test_the_tree_at_the_head_of_the_file_is_true() -> None:
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            drawn[words[0]] = int(words[1])
    assert drawn == {cls.__name__: cls.exit_code for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_offered_and_explained(cls: type[HyperAdapterError]) -> None:
    assert cls.__name__ in errors.__all__
    assert cls.__doc__


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("learnin_rate", " (did you mean 'learning_rate'?)"),
        ("seeds", " (did you mean 'seed'?)"),
        ("completely different", ""),
    ],
)
def test_nearest(word: str, hint: str) -> None:
    assert nearest(word, ["learning_rate", "seed"]) == hint
