"""The made-up corpus of the data pipeline's tests."""

from __future__ import annotations

from tests.unit.data_pipeline.conftest import corpus as corpus
