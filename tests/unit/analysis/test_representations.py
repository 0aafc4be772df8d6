"""Which weights stand for a language, and that they mean what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hyperadapter.analysis.distances import cka_distances
from hyperadapter.analysis.representations import (
    adapted_layers,
    check_languages,
    direction_keys,
    embedding_tables,
    languages_of,
    layer_matrices,
    require_language_adapters,
)
from hyperadapter.core.errors import ConfigError, LanguageError
from hyperadapter.core.languages import Direction
from hyperadapter.model.seq2seq import Seq2Seq
from tests.unit.analysis.conftest import LANGUAGES, make_config, make_model

OTHERS = LANGUAGES[1:]


@torch.no_grad()
def model_of(kind: str, **changes: Any) -> Seq2Seq:
    """Builds a model whose gains are not 1 and whose biases are not 0."""
    model = make_model(make_config(Path("run"), kind, **changes))
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("kind", ["hyper", "language", "family"])
@pytest.mark.parametrize("side", ["src", "tgt"])
def test_weights_are_those_that_translation_uses(kind: str, side: Any) -> None:
    model = model_of(kind)
    for place in adapted_layers(model.config, side).values():
        found = layer_matrices(model, OTHERS, side, "en", place)
        for row, code in enumerate(OTHERS):
            direction = Direction(code, "en") if side == "src" else Direction("en", code)
            weights = model.adapter_weights(*direction_keys(model, [direction]))
            assert weights is not None
            layer = weights.layer(model.config.adapted_layers[place])
            assert layer is not None
            parts = (layer.down_PRD, layer.down_bias_PR, layer.up_PDR, layer.up_bias_PD)
            flat = torch.cat([part.flatten() for part in parts]).detach()
            np.testing.assert_allclose(found.weights[row], flat, rtol=1e-4, atol=1e-5)
            # What goes in as a row of the identity comes out as a row of the product.
            product = (torch.eye(16) @ layer.down_PRD[0].t() @ layer.up_PDR[0].t()).detach()
            np.testing.assert_allclose(found.products[row], product, rtol=1e-4, atol=1e-5)


def test_a_direction_has_the_language_on_its_side() -> None:
    model = model_of("language")
    [first, *_] = adapted_layers(model.config, "src").values()
    de = layer_matrices(model, ["de"], "src", "en", first).weights[0]
    row = LANGUAGES.index("de")
    down = model.adapters.stack.down_KLRD[row, first] * model.adapters.stack.gain_KLD[row, first]
    np.testing.assert_allclose(de[: down.numel()], down.detach().flatten(), atol=1e-6)


def test_the_order_and_scale_of_units_do_not_show_in_products() -> None:
    model = model_of("language")
    stack = model.adapters.stack
    de, nl = (LANGUAGES.index(code) for code in ("de", "nl"))
    factors = torch.tensor([2.0, 0.5, 3.0, 1.0])
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter[nl] = parameter[de]
        stack.down_KLRD[nl] = (stack.down_KLRD[de] * factors[:, None])[:, [3, 1, 0, 2]]
        stack.up_KLDR[nl] = (stack.up_KLDR[de] / factors)[:, :, [3, 1, 0, 2]]
    found = layer_matrices(model, ["de", "nl", "es"], "src", "en", 0)
    np.testing.assert_allclose(found.products[0], found.products[1], rtol=1e-4, atol=1e-5)
    assert cka_distances(found.products)[0, 1] < 1e-9 < cka_distances(found.products)[0, 2]
    assert not np.allclose(found.weights[0], found.weights[1])


def test_embeddings_tied_untied_and_none() -> None:
    assert list(embedding_tables(model_of("hyper"))) == ["embedding"]
    untied = embedding_tables(model_of("hyper", tied_language_embeddings=False))
    assert list(untied) == ["embedding_src", "embedding_tgt"]
    assert untied["embedding_src"].shape == (6, 8)
    assert not np.array_equal(untied["embedding_src"], untied["embedding_tgt"])
    assert embedding_tables(model_of("language")) == {}


def test_layers_are_named_by_their_side() -> None:
    model = model_of("hyper").config
    assert adapted_layers(model, "src") == {"encoder.0": 0, "encoder.1": 1}
    assert adapted_layers(model, "tgt") == {"decoder.0": 2}
    adapter = model.adapter.model_copy(update={"encoder_layers": (1,)})
    some = model.model_copy(update={"adapter": adapter})
    assert adapted_layers(some, "src") == {"encoder.1": 0}
    assert adapted_layers(some, "tgt") == {"decoder.0": 1}


def test_only_languages_trained_on_that_side_are_compared() -> None:
    config = make_config(Path("run"), data={"directions": ["en-de", "de-en", "en-nl", "es-en"]})
    vocabulary = make_model(config).vocabulary
    assert languages_of(vocabulary, "src", "en") == ("de", "es")
    assert languages_of(vocabulary, "tgt", "en") == ("de", "nl")


@pytest.mark.parametrize(
    ("kind", "why"),
    [("none", "has no adapters"), ("direction", "has adapters of directions, not languages")],
)
def test_runs_without_languages_adapters_are_refused(kind: str, why: str) -> None:
    config = make_config(Path("run"), kind).model
    message = f"adapter.kind is '{kind}': this run {why}.*kind is hyper, language or family"
    with pytest.raises(ConfigError, match=message):
        require_language_adapters(config)


def test_codes_that_are_refused() -> None:
    check_languages(["de", "nl"], OTHERS, "tgt", "en")
    with pytest.raises(
        LanguageError,
        match=r"not trained on en-esp, so 'esp' .*did you mean 'es'.*choose from de, ",
    ):
        check_languages(["de", "esp"], OTHERS, "tgt", "en")
    with pytest.raises(LanguageError, match="'de' is named twice"):
        check_languages(["de", "nl", "de"], OTHERS, "src", "en")
