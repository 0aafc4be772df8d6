"""The vocabulary of a Hugging Face M2M100 or NLLB folder, and where each symbol's embedding lies.

Their ids are `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, then the pieces, then the language tokens. In
which files these are depends on the family and on the version of transformers that wrote them:

    M2M100   sentencepiece.bpe.model and vocab.json (the pieces' ids); the language tokens `__xx__`
             follow in an order that is fixed by the name `language_codes` and stands in no file
    NLLB     sentencepiece.bpe.model, whose piece i has the id i + 1; ids of the language tokens
             (`eng_Latn`) and of `<mask>` in tokenizer.json, tokenizer_config.json or
             added_tokens.json
    NLLB, by transformers 5 (or a fast tokenizer alone)
             tokenizer.json only: ids, merges, and the normalisation rules of SentencePiece
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data_pipeline.tokenizer import Tokenizer, bpe_model, with_own_ids
from hyperadapter.core.errors import CheckpointError, ConfigError, DataError, nearest
from hyperadapter.core.files import read_json
from hyperadapter.core.languages import from_catalog_code, parse_language, script_of

__all__ = ["LANGUAGE_CODES", "SourceVocabulary", "language_of_name", "read_vocabulary"]

Family = Literal["m2m100", "nllb"]

_SPM, _VOCAB, _FAST = "sentencepiece.bpe.model", "vocab.json", "tokenizer.json"
# In the order of our ids 0 to 3.
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
# Share of the pieces; the two files of M2M100 differ by a handful, if at all.
_MOST_BORROWED = 0.05
_NLLB_SPECIAL_IDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
_LANGUAGE_TOKEN = {
    "m2m100": re.compile(r"^__(\w+)__$"),
    "nllb": re.compile(r"^([a-z]{3}_[A-Z][a-z]{3})$"),
}
# The orders of M2M-100 (Fan et al. 2020) and of the WMT 2021 models (Tran et al. 2021).
LANGUAGE_CODES = {
    "m2m100": (
        "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl "
        "gu ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml "
        "mn mr ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl "
        "tn tr uk ur uz vi wo xh yi yo zh zu"
    ),
    "wmt21": "en ha is ja cs ru zh de",
}


class SourceVocabulary(NamedTuple):
    """What our symbols are in the other model.

    Attributes:
        family: Which of the two layouts the folder has.
        tokenizer: Its tokenizer with our special ids.
        piece_rows: Row of its embedding for each of our pieces.
        language_rows: Row for each language, by BCP 47 code, in the order of the rows.
        borrowed: Pieces without a row; they have the one of `<unk>`, which stood for them there.
        dropped: Its symbols that have no place here, by reason.
        num_ids: One more than its highest id.
    """

    family: Family
    tokenizer: Tokenizer
    piece_rows: list[int]
    language_rows: dict[str, int]
    borrowed: list[str]
    dropped: dict[str, list[str]]
    num_ids: int

    def only(self, languages: Sequence[str]) -> SourceVocabulary:
        """Keeps some languages, in the order given.

        Raises:
            ConfigError: One is given twice, or the model does not have it.
            LanguageError: A code is unknown.
        """
        codes = [parse_language(code) for code in languages]
        for code in codes:
            if codes.count(code) > 1:
                raise ConfigError(f"the language {code!r} is given twice; keep one")
            if code not in self.language_rows:
                raise ConfigError(
                    f"the model has no language {code!r}{nearest(code, self.language_rows)}; it "
                    f"has {', '.join(self.language_rows)}"
                )
        others = [code for code in self.language_rows if code not in codes]
        return self._replace(
            language_rows={code: self.language_rows[code] for code in codes},
            dropped=self.dropped | ({"languages not asked for": others} if others else {}),
        )


def read_vocabulary(folder: Path) -> SourceVocabulary:
    """Reads the tokenizer of a Hugging Face folder.

    Raises:
        CheckpointError: Files are missing, or are not those of an M2M100 or NLLB tokenizer.
    """
    family: Family = "m2m100" if (folder / _VOCAB).is_file() else "nllb"
    try:
        if (folder / _SPM).is_file():
            model, ids = _read_sentencepiece(folder, family)
        else:
            model, ids = _read_fast(folder)
    except DataError as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be used: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"a tokenizer file in {folder} has not the form that transformers gives it ({error!r})"
            "; download all of them again"
        ) from error
    return _match(family, Tokenizer.from_model(model), ids, folder)


def _read_sentencepiece(folder: Path, family: Family) -> tuple[bytes, dict[str, int]]:
    """Returns the model with our special ids, and the ids of all of the folder's tokens."""
    original = (folder / _SPM).read_bytes()
    model = with_own_ids(original)
    if family == "m2m100":
        vocabulary = _read_ids(folder / _VOCAB)
        languages = _m2m100_languages(folder, len(vocabulary))
        return model, _merge(folder, vocabulary, languages, _added(folder))
    pieces = Tokenizer(original, "").pieces()
    ids = {piece: number + 1 for number, piece in enumerate(pieces) if piece not in _SPECIAL}
    behind = {token: number for token, number in _added(folder).items() if number > len(pieces)}
    return model, _merge(folder, ids, _NLLB_SPECIAL_IDS, behind)


def _merge(folder: Path, *tables: Mapping[str, int]) -> dict[str, int]:
    """Puts tables of ids together.

    Raises:
        CheckpointError: They give a token two ids, or an id two tokens.
    """
    merged: dict[str, int] = {}
    token_of: dict[int, str] = {}
    for token, number in chain.from_iterable(table.items() for table in tables):
        if merged.setdefault(token, number) != number:
            problem = f"the token {token!r} has the ids {merged[token]} and {number}"
        elif token_of.setdefault(number, token) != token:
            problem = f"{token_of[number]!r} and {token!r} both have the id {number}"
        else:
            continue
        raise CheckpointError(
            f"by the tokenizer's files in {folder} {problem}; they do not belong together: "
            "download all of them again"
        )
    return merged


def _m2m100_languages(folder: Path, first: int) -> dict[str, int]:
    """Returns the ids of the language tokens, which begin at `first`."""
    settings = folder / "tokenizer_config.json"
    name = read_json(settings).get("language_codes", "m2m100") if settings.is_file() else "m2m100"
    if name not in LANGUAGE_CODES:
        raise CheckpointError(
            f"{settings} has language_codes {name!r}, whose languages are not known; it must be "
            f"one of {', '.join(LANGUAGE_CODES)}"
        )
    return {f"__{code}__": first + n for n, code in enumerate(LANGUAGE_CODES[name].split())}


def _added(folder: Path) -> dict[str, int]:
    """Returns ids of tokens, among them those the SentencePiece model lacks, such as languages."""
    fast, settings = folder / _FAST, folder / "tokenizer_config.json"
    if fast.is_file():
        tree = read_json(fast)
        pieces = tree["model"]["vocab"]  # a list of piece and score, where they are not BPE
        ids = pieces if isinstance(pieces, dict) else {p: n for n, (p, _) in enumerate(pieces)}
        return ids | {token["content"]: token["id"] for token in tree["added_tokens"]}
    if settings.is_file() and (added := read_json(settings).get("added_tokens_decoder")):
        return {token["content"]: int(number) for number, token in added.items()}
    if (folder / "added_tokens.json").is_file():
        return _read_ids(folder / "added_tokens.json")
    return {}


def _read_ids(path: Path) -> dict[str, int]:
    ids = read_json(path)
    if not isinstance(ids, dict) or not all(isinstance(number, int) for number in ids.values()):
        raise CheckpointError(f"{path} must map tokens to their numbers; download it again")
    return ids


def _read_fast(folder: Path) -> tuple[bytes, dict[str, int]]:
    """Returns what `_read_sentencepiece` does, of a tokenizer.json."""
    path = folder / _FAST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer: neither {_SPM} nor {_FAST}; download all files of the "
            "model's repository"
        )
    tree = read_json(path)
    kind = tree["model"]["type"]
    charsmap = next(_charsmaps(tree["normalizer"]), None)
    if kind != "BPE" or charsmap is None:
        raise CheckpointError(
            f"{path} holds a {kind} tokenizer {'with' if charsmap else 'without'} normalisation "
            f"rules of SentencePiece, but NLLB's is BPE with them; put {_SPM} of the original "
            "model beside it"
        )
    added = {token["content"] for token in tree["added_tokens"]}
    vocabulary: dict[str, int] = tree["model"]["vocab"]
    pieces = [p for p in sorted(vocabulary, key=vocabulary.__getitem__) if p not in added]
    # Written as "a b" before version 0.20 of the library tokenizers, as ["a", "b"] since.
    pairs = (tuple(m.split(" ") if isinstance(m, str) else m) for m in tree["model"]["merges"])
    return bpe_model(pieces, ((a, b) for a, b in pairs), charsmap), _merge(folder, _added(folder))


def _charsmaps(node: Any) -> Iterator[bytes]:
    """Yields the SentencePiece rules in a tree of normalisers."""
    if not isinstance(node, dict):
        return
    if node.get("type") == "Precompiled":
        try:
            yield base64.b64decode(node["precompiled_charsmap"], validate=True)
        except binascii.Error as error:
            raise CheckpointError(f"{_FAST}: the rules are not base 64: {error}") from error
    for child in node.get("normalizers", ()):
        yield from _charsmaps(child)


def _match(
    family: Family, tokenizer: Tokenizer, ids: Mapping[str, int], folder: Path
) -> SourceVocabulary:
    """Finds the row of every symbol of ours, and what is left over."""
    for name in _SPECIAL:
        if name not in ids:
            raise CheckpointError(
                f"the tokenizer in {folder} has no {name!r}, which M2M100 and NLLB have; it "
                "belongs to another kind of model"
            )
    pieces = tokenizer.pieces()
    names = [*_SPECIAL, *pieces[len(_SPECIAL) :]]
    borrowed = [name for name in names if name not in ids]
    if len(borrowed) > _MOST_BORROWED * len(names):
        raise CheckpointError(
            f"{len(borrowed)} of the {len(names)} pieces of {folder / _SPM} have no id in {_VOCAB};"
            " it is of another tokenizer: download both again"
        )
    languages: dict[str, int] = {}
    dropped: dict[str, list[str]] = {}
    used = set(names)
    for token, row in sorted(ids.items(), key=lambda item: item[1]):
        if token in used:
            continue
        found = _LANGUAGE_TOKEN[family].match(token)
        code = language_of_name(found[1]) if found else None
        if code is not None and code not in languages:
            languages[code] = row
            continue
        reason = (
            "tokens without a piece"
            if found is None
            else "languages without a code here"
            if code is None
            else "second tokens of a language"
        )
        dropped.setdefault(reason, []).append(token)
    if len(languages) < 2:
        raise CheckpointError(
            f"{folder} names the ids of {len(languages)} languages; they must stand in {_FAST}, "
            "tokenizer_config.json (added_tokens_decoder) or added_tokens.json: download all files "
            "of the model's repository"
        )
    return SourceVocabulary(
        family=family,
        tokenizer=tokenizer,
        piece_rows=[ids.get(name, ids["<unk>"]) for name in names],
        language_rows=languages,
        borrowed=borrowed,
        dropped=dropped,
        num_ids=max(ids.values()) + 1,
    )


def language_of_name(name: str) -> str | None:
    """Returns the BCP 47 code of a token's name; None if it has none here.

    Those who add languages to NLLB name them in its way, such as tyv_Cyrl for Tuvan.
    """
    code = from_catalog_code(name)
    if code is None:
        base, _, script = name.partition("_")
        code = from_catalog_code(base)
        if code is not None and script_of(code) != script:
            return None
    return code
