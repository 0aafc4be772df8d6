"""Parquet files, such as those of dataset hubs: texts in columns, nested or not, and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.sources import ParquetSource
from hyperadapter.core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["iter_rows"]

_BATCH_ROWS = 16_384


def iter_rows(source: ParquetSource, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields two columns of all files, in the order of `source.languages`.

    Files are read in batches of rows. Rows with a score below `min_scores` are skipped and counted.

    Raises:
        DataError: A file is missing, is not Parquet, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    a, b = source.languages
    fields = source.fields or (f"translation.{a}", f"translation.{b}")
    columns = [*fields, *source.min_scores]
    for path in map(Path, source.paths):
        where = f"source {source.name!r}"
        try:
            # Threads would fight with the other processes that clean.
            with pq.ParquetFile(path, pre_buffer=False) as file:
                _require_columns(file.schema_arrow, source, fields, path)
                for batch in file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
                    yield from _rows_of(batch, source.min_scores, fields, skipped)
        except FileNotFoundError as error:
            raise DataError(f"{where}: the file {path} does not exist; correct the path") from error
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise DataError(
                f"{where}: {path} is not a whole Parquet file ({' '.join(str(error).split())}); "
                "copy it again"
            ) from error


def _require_columns(
    schema: pa.Schema, source: ParquetSource, fields: tuple[str, str], path: Path
) -> None:
    """Refuses a file in which a column is missing or not of the type that is needed."""
    import pyarrow.types as types

    leaves = dict(_leaves(schema))
    wanted_types = [(name, "text") for name in fields]
    wanted_types += [(name, "numbers") for name in source.min_scores]
    for name, wanted in wanted_types:
        kind = leaves.get(name)
        if kind is None:
            raise DataError(
                f"source {source.name!r}: {path} has no column {name!r}; its columns are "
                f"{', '.join(leaves)}. Correct `fields` or `min_scores`"
            )
        is_text = types.is_string(kind) or types.is_large_string(kind)
        is_number = types.is_floating(kind) or types.is_integer(kind)
        if not (is_text if wanted == "text" else is_number):
            raise DataError(
                f"source {source.name!r}: the column {name!r} of {path} must hold {wanted}, but "
                f"has the type {kind}. Correct `fields` or `min_scores`"
            )


def _leaves(
    fields: pa.Schema | pa.StructType, prefix: str = ""
) -> Iterator[tuple[str, pa.DataType]]:
    """Yields the dotted names and types of all columns."""
    import pyarrow.types as types

    for field in fields:
        if types.is_struct(field.type):
            yield from _leaves(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.type


def _rows_of(
    batch: pa.RecordBatch,
    min_scores: dict[str, float],
    fields: tuple[str, str],
    skipped: Counter[str],
) -> Iterator[tuple[str, str]]:
    import pyarrow.compute as pc

    for name, minimum in min_scores.items():
        keep = pc.fill_null(pc.greater_equal(_column(batch, name), minimum), False)
        kept = batch.filter(keep)
        if dropped := batch.num_rows - kept.num_rows:
            skipped[f"{name} below {minimum:g}"] += dropped
        batch = kept
    for first, second in zip(*(_column(batch, name).to_pylist() for name in fields), strict=True):
        if first and second and first.strip() and second.strip():
            yield first, second
        else:
            skipped["empty line"] += 1


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Returns a column by its dotted name; rows whose struct is null are null."""
    import pyarrow.compute as pc

    top, *path = name.split(".")
    column = batch.column(top)
    return pc.struct_field(column, path) if path else column
