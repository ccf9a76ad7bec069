"""Figures from arrays: learning curves, a response to one swept field, a heat-map over two.

Knows no run folder. Matplotlib's own Figure on an Agg canvas, never pyplot: no display, no global figure,
no change of settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rljax.runs.reports.statistics import FEWEST, curve_interval, iqm, stratified_bootstrap_interval

# Okabe & Ito's colours, told apart by the colour-blind too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
_GREY, _DARK = "#8C8C8C", "#333333"
_POINTS = 500  # of a curve: more than its width in pixels shows
_DPI = 150


class Line(NamedTuple):
    """One learning curve."""

    label: str
    steps: np.ndarray  # (T,) environment steps, or tokens, of each seed
    values: np.ndarray  # (S, T) finite; T = 0 where there is nothing to draw yet


class Panel(NamedTuple):
    """The curves of one environment or task."""

    title: str
    quantity: str  # the label of the y axis
    lines: list[Line]
    steps: str = "environment steps"  # the label of the x axis


def curves(panels: Sequence[Panel], path: Path) -> Path:
    """A PNG of learning curves, one subplot per panel: IQM over seeds, 95 % band from five seeds."""
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = 4.9 if columns > 1 else 6.4 if len(panels[0].lines) <= 8 else 9.0
    figure = _figure(width * columns, (4.4 if columns == 1 else 3.9) * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _panel(axes, panel)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    sizes = [len(line.values) for panel in panels for line in panel.lines if line.values.size]
    note = {0: "", 1: "one seed, not smoothed", 2: "mean of two seeds, and each of them, not smoothed"}.get(
        max(sizes, default=0), "IQM over seeds with 95 % stratified-bootstrap interval, not smoothed"
    )
    figure.supxlabel(note, fontsize=7.5, color=_GREY)
    return _save(figure, path)


def _panel(axes: Any, panel: Panel) -> None:
    colors = _colors(len(panel.lines))
    for line, color in zip(panel.lines, colors, strict=True):
        pick = np.unique(np.linspace(0, max(0, len(line.steps) - 1), _POINTS).round().astype(int))
        pick = pick[: len(line.steps)]
        steps, values = line.steps[pick], line.values[:, pick]
        if len(values) == 2:
            axes.plot(steps, values.T, color=color, linewidth=0.8, alpha=0.35)
        if len(values) >= FEWEST:
            low, high = curve_interval(values).T
            axes.fill_between(
                steps, low, high, color=color, alpha=0.2 if len(colors) <= 8 else 0.05, linewidth=0
            )
        middle = iqm(values, axis=0) if values.size else np.zeros(0)
        marker = "o" if len(steps) == 1 else None  # one row has no line to show
        axes.plot(steps, middle, color=color, linewidth=1.8, label=line.label, marker=marker)
    if not any(line.values.size for line in panel.lines):
        axes.text(0.5, 0.5, "no episode has ended yet", ha="center", color=_GREY, transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
    _style(axes, panel.title, panel.steps, panel.quantity)
    axes.xaxis.set_major_formatter(lambda value, _: _thousands(value))
    axes.margins(x=0.02)
    if len(panel.lines) > 8:
        axes.legend(
            frameon=False,
            fontsize=7,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(panel.lines) // 24 + 1,
        )
    else:
        axes.legend(frameon=True, framealpha=0.8, edgecolor="none", fontsize=8.5, loc="best")


def response(
    field: str, values: Sequence[Any], cells: Sequence[np.ndarray], title: str, quantity: str, path: Path
) -> Path:
    """A PNG of a quantity against one swept field: a dot per seed, the IQM as a line, its 95 % interval.

    `cells[i]` is (S,), the quantity of each seed at `values[i]`, NaN where a seed has none.
    """
    figure = _figure(6.4, 4.4)
    axes = figure.subplots()
    positions, numeric, logarithmic = _positions(values)
    order = np.argsort(positions)
    positions, cells, values = positions[order], [cells[i] for i in order], [values[i] for i in order]
    finite = [cell[np.isfinite(cell)] for cell in cells]
    for x, cell in zip(positions, finite, strict=True):
        axes.plot(np.full(len(cell), x), cell, ".", color=COLORS[0], alpha=0.35, markersize=5)
    kept = [i for i, cell in enumerate(finite) if len(cell)]
    x, y = positions[kept], np.array([centre(finite[i]) for i in kept])
    joined = numeric and len(kept) > 1  # nothing lies between two names
    style = {"color": COLORS[0], "linewidth": 1.8, "markersize": 5, "label": "IQM over seeds"}
    axes.plot(x, y, "o-" if joined else "o", **style)
    if kept and all(len(finite[i]) >= FEWEST for i in kept):
        ends = np.array([stratified_bootstrap_interval(finite[i]) for i in kept]).T
        label = "95 % bootstrap interval"
        if joined:
            axes.fill_between(x, *ends, color=COLORS[0], alpha=0.2, linewidth=0, label=label)
        else:
            axes.vlines(x, *ends, color=COLORS[0], linewidth=1.8, label=label)
            axes.margins(x=0.2)
    if logarithmic:
        axes.set_xscale("log")
    shown = np.unique(np.linspace(0, len(values) - 1, 12).round().astype(int))
    axes.set_xticks(positions[shown], [text(values[i]) for i in shown])
    axes.set_xticks([], minor=True)
    _style(axes, title, field, quantity)
    axes.legend(frameon=True, framealpha=0.8, edgecolor="none", fontsize=8.5)
    return _save(figure, path)


def heat_map(
    fields: tuple[str, str],
    values: tuple[Sequence[Any], Sequence[Any]],
    cells: list[list[np.ndarray]],
    title: str,
    quantity: str,
    path: Path,
    limits: tuple[float, float],
) -> Path:
    """A PNG of a quantity over two swept fields: the IQM over seeds in every cell, the best one framed.

    Args:
        fields: of rows and of columns.
        values: R and C of them.
        cells: `cells[r][c]` is (S,), the quantity of each seed, NaN where a seed has none.
        limits: of the colours, the same for maps to be compared.
    """
    from matplotlib.patches import Rectangle

    means = np.array([[centre(cell) for cell in row] for row in cells])
    rows, columns = means.shape
    figure = _figure(max(4.6, min(2.6 + 0.85 * columns, 16)), max(3.4, min(1.6 + 0.6 * rows, 12)))
    axes = figure.subplots()
    low, high = limits
    axes.set_facecolor("#E6E6E6")
    image = axes.imshow(means, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    size = float(np.clip(min(110 / columns, 60 / rows), 4.5, 9.5))
    for r, c in np.ndindex(means.shape):
        there = int(np.isfinite(cells[r][c]).sum())
        label = amount(float(means[r, c]), high - low) if there else "–"
        if there < len(cells[r][c]):
            label += f"\n{there} of {len(cells[r][c])}"
        dark = not means[r, c] > low + 0.55 * (high - low)
        color = _DARK if math.isnan(means[r, c]) or not dark else "white"
        axes.text(c, r, label, ha="center", va="center", fontsize=size, color=color)
    if np.isfinite(means).any():
        r, c = np.unravel_index(np.nanargmax(means), means.shape)
        axes.add_patch(
            Rectangle((c - 0.5, r - 0.5), 1, 1, fill=False, edgecolor=COLORS[1], linewidth=2.2, zorder=3)
        )
    axes.set_xticks(range(columns), [text(value) for value in values[1]])
    axes.set_yticks(range(rows), [text(value) for value in values[0]])
    axes.tick_params(length=0, labelsize=8.5, colors=_DARK)
    axes.set_xlabel(fields[1], color=_DARK)
    axes.set_ylabel(fields[0], color=_DARK)
    axes.set_title(title, fontsize=10.5, color=_DARK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(quantity, color=_DARK)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(length=2, labelsize=8, colors=_DARK)
    return _save(figure, path)


def centre(cell: np.ndarray) -> float:
    """The IQM of the numbers of a cell (S,) that are finite, NaN if none is."""
    finite = cell[np.isfinite(cell)]
    return float(iqm(finite)) if len(finite) else math.nan


def text(value: Any) -> str:
    """A Config value as short as one would type it: 3e-4, 0.99, 64, tanh, 64x64."""
    if isinstance(value, list | tuple):
        return "x".join(text(item) for item in value) or "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value and (abs(value) < 1e-2 or abs(value) >= 1e5):
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.6g}"


def amount(value: float, spread: float) -> str:
    """A number with the digits that matter where values differ by `spread`."""
    scale = max(spread, 1e-2 * abs(value))
    digits = 0 if scale <= 0 or scale >= 20 else max(0, min(6, 1 - math.floor(math.log10(scale))))
    return f"{value:.{digits}f}" if abs(value) < 1e7 else f"{value:.3g}"


def _positions(values: Sequence[Any]) -> tuple[np.ndarray, bool, bool]:
    """Where values lie on an axis, whether it is one of numbers, and whether logarithmic."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        array = np.asarray(values, np.float64)
        return array, True, bool((array > 0).all() and array.max() >= 8 * array.min())
    return np.arange(len(values), dtype=np.float64), False, False


def _thousands(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _colors(count: int) -> list[Any]:
    if count <= len(COLORS):
        return list(COLORS[:count])
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.95, count)))


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11, color=_DARK)
    axes.set_xlabel(x, color=_DARK)
    axes.set_ylabel(y, color=_DARK)
    axes.grid(True, color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_DARK, labelsize=8.5, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#B0B0B0")


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path
