"""Training curves: loss, and Dice on the validation cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medseg.drawing.style import INK, MUTED, quiet, save_png, structure_colour, styled

STRUCTURE_PREFIX = "val_dice_"
MODELS_PER_ROW = 3
TITLE_WIDTH = 24  # characters; more would run into the next model's


def draw_training_curves(log: pd.DataFrame, path: Path) -> Path:
    """Draw one model's training log to a PNG.

    Args:
        log: one row an epoch: epoch, train_loss, val_dice, and where there are any val_loss and val_dice_<structure>;
            empty cells where nothing was measured; other columns are left alone.
        path: where the PNG goes; written whole or not at all.
    """
    return save_png(training_figure({"": log}), path)


def training_figure(logs: Mapping[str, pd.DataFrame]) -> Figure:
    """The training curves of several models side by side on common axes: loss above, validation Dice below.

    Args:
        logs: title -> training log, as `draw_training_curves` takes it.
    """
    columns = 2 if len(logs) == 4 else min(MODELS_PER_ROW, max(1, len(logs)))
    rows = -(-len(logs) // columns)
    with styled():
        figure = Figure(figsize=(7.6 if columns > 1 else 4.6, 4.4 * rows), layout="constrained")
        grid = figure.subplots(2 * rows, columns, squeeze=False)
        for place, (title, log) in enumerate(logs.items()):
            row, column = divmod(place, columns)
            above, below = grid[2 * row, column], grid[2 * row + 1, column]
            _draw_loss(above, log)
            _draw_dice(below, log)
            above.set_title("\n".join(wrap(title.replace(",", ", "), TITLE_WIDTH)))
            below.sharex(above)
            above.tick_params(labelbottom=False)
            if column == 0:
                above.set_ylabel("Loss")
                below.set_ylabel("Dice (validation)")
        for empty in range(len(logs), rows * columns):
            row, column = divmod(empty, columns)
            grid[2 * row, column].set_visible(False)
            grid[2 * row + 1, column].set_visible(False)
        _share_limits([grid[2 * (i // columns), i % columns] for i in range(len(logs))])
        _share_limits([grid[2 * (i // columns) + 1, i % columns] for i in range(len(logs))])
    return figure


def _draw_loss(axes: Axes, log: pd.DataFrame) -> None:
    quiet(axes)
    _line(axes, log, "train_loss", label="training", color=INK, linewidth=1.5)
    _line(axes, log, "val_loss", label="validation", color=MUTED, linewidth=1.3, linestyle="--")
    if len(axes.lines) > 1:
        axes.legend(loc="upper right")


def _draw_dice(axes: Axes, log: pd.DataFrame) -> None:
    quiet(axes)
    structures = [c for c in log.columns if c.startswith(STRUCTURE_PREFIX)]
    if len(structures) > 1:
        for index, column in enumerate(structures):
            name = column.removeprefix(STRUCTURE_PREFIX)
            _line(axes, log, column, label=name, color=structure_colour(index), linewidth=1.2, alpha=0.9)
    _line(axes, log, "val_dice", label="mean", color=INK, linewidth=1.8)
    if "val_dice" in log and (measured := log["val_dice"].dropna()).size:
        best = int(measured.to_numpy().argmax())
        x, y = float(_epochs(log)[measured.index].iloc[best]), float(measured.iloc[best])
        axes.plot(x, y, "o", color=INK, markersize=5)
        # Over the axes, where no curve runs through it.
        axes.set_title(f"best {y:.3f} in epoch {x:g}", loc="right", fontsize=8, fontweight="normal", color=INK, pad=3)
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if 1 < len(axes.get_legend_handles_labels()[0]) <= 9:
        axes.legend(loc="lower right")


def _line(axes: Axes, log: pd.DataFrame, column: str, **style: object) -> None:
    if column not in log:
        return
    measured = log[column].notna()
    if not measured.any():
        return
    marker = "o" if measured.sum() < 2 else None
    axes.plot(_epochs(log)[measured], log.loc[measured, column], marker=marker, markersize=4, **style)  # type: ignore[arg-type]


def _epochs(log: pd.DataFrame) -> pd.Series[float]:
    return log["epoch"] if "epoch" in log else pd.Series(range(1, len(log) + 1), index=log.index, dtype=float)


def _share_limits(group: list[Axes]) -> None:
    """Common y limits, so that one model's curve can be held against another's."""
    limits = [axes.get_ylim() for axes in group if axes.lines]
    for axes in group:
        if limits:
            lowest, highest = min(low for low, _ in limits), max(high for _, high in limits)
            axes.set_ylim(lowest, highest + 0.04 * (highest - lowest))  # room for the mark of the best
