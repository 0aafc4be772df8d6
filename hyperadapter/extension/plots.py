"""The picture of a language that was added."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperadapter.core.files import atomic_open

__all__ = ["plot_extension"]

_SHOWN = 12


def plot_extension(report: Mapping[str, Any], path: Path) -> Path:
    """Draws the held-out loss after each pass, and the loss with each relative's rows.

    Args:
        report: What `extension.json` holds.
        path: Of the picture.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    curve, dots = figure.subplots(1, 2)
    numbers = [item["number"] for item in report["passes"]]
    curve.plot(numbers, [item["valid_loss"] for item in report["passes"]], label="held out")
    learnt = [item for item in report["passes"] if item["train_loss"] is not None]
    curve.plot([item["number"] for item in learnt], [item["train_loss"] for item in learnt],
               label="fitted pairs")  # fmt: skip
    curve.axvline(report["kept_pass"], color="0.7", linewidth=1)
    curve.set(xlabel="passes over the pairs", ylabel="nats per token")
    curve.set_title(f"{report['language']}: {report['parameters']:,} numbers")
    curve.legend()
    shown = report["relatives"][:_SHOWN][::-1]
    dots.plot([item["loss"] for item in shown], [item["code"] for item in shown], "o")
    dots.grid(axis="y", color="0.9")
    dots.set(xlabel="nats per token", title="as which language it is understood")
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=120)
    return path
