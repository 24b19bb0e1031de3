"""The drawings: a time line of steps with the histogram of their durations, curves over time, and how late things were.
SVG texts, by hand.

Colours are those of Okabe and Ito (2008), Color Universal Design, which colour-blind people tell apart; the red of an
overrun is also darker than the others.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rt_lrhc.errors import ConfigurationError
from rt_lrhc.svg import (
    FAINT_INK,
    GRID,
    INK,
    Anchor,
    Box,
    Drawing,
    Pen,
    Scale,
    padded,
    text_width,
    ticks,
)
from rt_lrhc.timing.statistics import DurationUnit, summarise

FloatArray = npt.NDArray[np.float64]

_WIDTH = 1000.0
_EDGE = 24.0
_SMALL = 11.0
_ROW = 28.0
_PANEL = 150.0
_LATENESS_ROW = 58.0
_BINS = 120
_TIME_TICKS = 11
_OVERRUN = "#c1121f"
_SLACK = "#e9ecef"
_REFERENCE = "#3d444d"
_STEP_LINE = Pen("#59636e", 1.2)
_PERIOD_LINE = Pen("#c3cad2", 1.0, (2.0, 3.0))
_LINES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


class Work(Enum):
    """What a lane's bars stand for. The value is the word in the legend."""

    AGENT = "inference"
    CAPTURE = "capture"
    PLANT = "physics"
    SOLVE = "solve"

    @property
    def colour(self) -> str:
        """Its colour."""
        return {"inference": "#0072b2", "capture": "#cc79a7", "physics": "#009e73", "solve": "#e69f00"}[
            self.value
        ]


@dataclass(frozen=True)
class Lane:
    """One row of a time line.

    Attributes:
        name: Who works, e.g. `"worker 0"`.
        work: What the bars stand for.
        spans: Start and end of each piece of work, (n, 2), s on the clock of the time line.
        deadlines: Latest allowed end of each piece, (n,), s; None if there is none. The time left is shaded (slack),
            and a piece that ends later is red (overrun).

    Raises:
        ConfigurationError: If the shapes do not fit.
    """

    name: str
    work: Work
    spans: FloatArray
    deadlines: FloatArray | None = None

    def __post_init__(self) -> None:
        spans = np.asarray(self.spans, dtype=np.float64)
        if spans.size == 0:
            spans = spans.reshape(0, 2)
        if spans.ndim != 2 or spans.shape[1] != 2:
            raise ConfigurationError(f"lane {self.name!r}: spans must have shape (n, 2), got {spans.shape}")
        object.__setattr__(self, "spans", spans)
        if self.deadlines is not None:
            deadlines = np.asarray(self.deadlines, dtype=np.float64)
            if deadlines.shape != spans.shape[:1]:
                raise ConfigurationError(
                    f"lane {self.name!r}: expected one deadline for each of the {len(spans)} spans, "
                    f"got shape {deadlines.shape}"
                )
            object.__setattr__(self, "deadlines", deadlines)

    def shown(self, start: float, end: float) -> Iterator[tuple[float, float, float]]:
        """Yield `(start, end, deadline)` of what lies in [start, end], s; where there is no deadline it is infinite."""
        deadlines = np.full(len(self.spans), math.inf) if self.deadlines is None else self.deadlines
        for (begin, finish), deadline in zip(self.spans.tolist(), deadlines.tolist(), strict=True):
            if finish > start and begin < end:
                yield begin, finish, deadline


@dataclass(frozen=True)
class Curve:
    """A line over time.

    Attributes:
        name: Its name in the legend; curves of one name share a colour and one entry.
        time: Abscissae, (n,), s.
        values: Ordinates, (n,); NaN interrupts the line.
        reference: Whether it is what was commanded: drawn dashed, in grey.
        faint: Whether it is one of many: drawn thin and pale.
    """

    name: str
    time: FloatArray
    values: FloatArray
    reference: bool = False
    faint: bool = False

    def __post_init__(self) -> None:
        time, values = np.asarray(self.time, dtype=np.float64), np.asarray(self.values, dtype=np.float64)
        if time.ndim != 1 or time.shape != values.shape:
            raise ConfigurationError(
                f"curve {self.name!r}: time and values must have one shape (n,), got {time.shape} and {values.shape}"
            )
        object.__setattr__(self, "time", time)
        object.__setattr__(self, "values", values)


@dataclass(frozen=True)
class Panel:
    """Axes with curves on them.

    Attributes:
        title: What is shown.
        label: Quantity and unit of the ordinate, e.g. `"cart position / m"`.
        curves: The curves; the first ones are drawn lowest.
        note: A result to read beside the title, e.g. `"RMS error 0.08 m"`.
        limits: Range of the ordinate; None takes what all panels of this label need. What lies
            beyond is cut off.
        marks: Events to mark by a red cross, (n, 2): time in s, ordinate.
        marks_name: What the crosses mean, for the legend.
    """

    title: str
    label: str
    curves: tuple[Curve, ...]
    note: str = ""
    limits: tuple[float, float] | None = None
    marks: FloatArray = field(default_factory=lambda: np.empty((0, 2)))
    marks_name: str = ""


@dataclass(frozen=True)
class _Entry:
    """One entry of a legend: a swatch of a colour, or a sample of a line."""

    name: str
    colour: str
    pen: Pen | None = None
    opacity: float = 1.0
    cross: bool = False


def _heading(drawing: Drawing, title: str, subtitle: str) -> float:
    """Write title and subtitle; return the height at which the next thing may start."""
    drawing.text((_EDGE, 36.0), title, size=17.0, bold=True)
    if subtitle:
        drawing.text((_EDGE, 56.0), subtitle, size=12.0, colour=FAINT_INK)
    return 70.0 if subtitle else 52.0


def _legend(drawing: Drawing, entries: Sequence[_Entry], top: float) -> float:
    """Draw a legend from the left edge, in as many rows as it takes; return the height at which it ends."""
    x, y = _EDGE, top + 12.0
    for entry in entries:
        width = 30.0 + text_width(entry.name, 12.0) + 18.0
        if x > _EDGE and x + width > _WIDTH - _EDGE:
            x, y = _EDGE, y + 20.0
        if entry.cross:
            _cross(drawing, x + 12.0, y - 4.0)
        elif entry.pen is not None:
            drawing.line((x, y - 4.0), (x + 24.0, y - 4.0), entry.pen)
        else:
            drawing.rectangle(
                Box(x, y - 9.0, x + 24.0, y + 1.0), entry.colour, opacity=entry.opacity, radius=2.0
            )
        drawing.text((x + 30.0, y), entry.name)
        x += width
    return y + 10.0


def _cross(drawing: Drawing, x: float, y: float) -> None:
    pen = Pen(_OVERRUN, 2.0)
    drawing.line((x - 4.0, y - 4.0), (x + 4.0, y + 4.0), pen)
    drawing.line((x - 4.0, y + 4.0), (x + 4.0, y - 4.0), pen)


def _x_axis(drawing: Drawing, scale: Scale, box: Box, label: str) -> None:
    """Draw an abscissa with ticks, their values and its label."""
    for value, text in ticks(scale.low, scale.high, most=_TIME_TICKS):
        x = scale(value)
        drawing.line((x, box.bottom), (x, box.bottom + 4.0), Pen(FAINT_INK))
        drawing.text((x, box.bottom + 17.0), text, size=_SMALL, colour=FAINT_INK, anchor=Anchor.MIDDLE)
    drawing.line((box.left, box.bottom), (box.right, box.bottom), Pen(FAINT_INK))
    drawing.text(((box.left + box.right) / 2, box.bottom + 35.0), label, anchor=Anchor.MIDDLE)


def _y_axis(drawing: Drawing, scale: Scale, box: Box, label: str) -> None:
    """Draw an ordinate with its values, its label, and a grid."""
    for value, text in ticks(scale.low, scale.high, most=max(2, int(box.height / 32.0))):
        y = scale(value)
        drawing.line((box.left, y), (box.right, y), Pen(GRID))
        drawing.text((box.left - 8.0, y + 4.0), text, size=_SMALL, colour=FAINT_INK, anchor=Anchor.END)
    drawing.line((box.left, box.top), (box.left, box.bottom), Pen(FAINT_INK))
    middle = (box.top + box.bottom) / 2
    drawing.text((_EDGE + 10.0, middle), label, anchor=Anchor.MIDDLE, upwards=True)


def timeline(
    lanes: Sequence[Lane],
    *,
    time_steps: FloatArray,
    step_durations: FloatArray,
    time_step_duration: float,
    control_period: float | None = None,
    first_step: int = 0,
    title: str = "Time line",
    subtitle: str = "",
) -> str:
    """Draw who worked when during some time-steps, and the histogram of many steps' durations beneath.

    Args:
        lanes: The rows, from top to bottom.
        time_steps: Starts of the time-steps shown and the end of the last one, (m + 1,), s, increasing; what lies
            outside is not drawn. The axis counts from the first.
        step_durations: Durations for the histogram, (n,), s; NaN does not count.
        time_step_duration: Nominal duration, s.
        control_period: Distance of the thin grid lines from the first time-step's start on, s; None for none.
        first_step: Number of the first time-step shown.
        title: Title of the figure.
        subtitle: A second line beneath it.

    Returns:
        The text of an SVG file.

    Raises:
        ConfigurationError: If `time_steps` holds no time-step, or does not increase.
    """
    time_steps = np.asarray(time_steps, dtype=np.float64)
    if time_steps.ndim != 1 or time_steps.size < 2 or not np.all(np.diff(time_steps) > 0.0):
        raise ConfigurationError(f"time_steps must be at least two increasing times, s, got {time_steps}")
    drawing = Drawing(_WIDTH, f"{title}. {subtitle}")
    below = _legend(drawing, _timeline_legend(lanes, control_period), _heading(drawing, title, subtitle))
    left = _EDGE + max([60.0, *(text_width(lane.name, 12.0) for lane in lanes)]) + 10.0
    box = Box(left, below + 26.0, _WIDTH - _EDGE, below + 26.0 + _ROW * len(lanes) + 6.0)
    scale = Scale(0.0, float(time_steps[-1] - time_steps[0]) * 1e3, box.left, box.right)
    # Under the grid, where the time left would hide it.
    for row, lane in enumerate(lanes):
        _slack(drawing, lane, time_steps, scale, box.top + _ROW * row + 3.0)
    _time_grid(drawing, box, scale, time_steps, control_period, first_step)
    drawing.begin_clip(box)
    for row, lane in enumerate(lanes):
        _bars(drawing, lane, time_steps, scale, box.top + _ROW * row + 3.0)
    drawing.end_clip()
    for row, lane in enumerate(lanes):
        drawing.text((box.left - 10.0, box.top + _ROW * row + 20.0), lane.name, anchor=Anchor.END)
    _x_axis(drawing, scale, box, "time / ms")
    below = box.bottom + 96.0
    _histogram(
        drawing,
        Box(left, below, _WIDTH - _EDGE, below + 130.0),
        np.asarray(step_durations, dtype=np.float64),
        time_step_duration,
    )
    return drawing.svg(below + 130.0 + 54.0)


def _timeline_legend(lanes: Sequence[Lane], control_period: float | None) -> list[_Entry]:
    entries = [_Entry(work.value, work.colour) for work in Work if any(lane.work is work for lane in lanes)]
    if any(lane.deadlines is not None for lane in lanes):
        entries.append(_Entry("slack", _SLACK))
        entries.append(_Entry("overrun", _OVERRUN))
    entries.append(_Entry("time-step", INK, pen=_STEP_LINE))
    if control_period is not None:
        entries.append(_Entry("control period", GRID, pen=_PERIOD_LINE))
    return entries


def _time_grid(
    drawing: Drawing,
    box: Box,
    scale: Scale,
    time_steps: FloatArray,
    control_period: float | None,
    first_step: int,
) -> None:
    """Draw the time-steps with their numbers and, where there is room for them, the control periods."""
    starts = (time_steps - time_steps[0]) * 1e3
    if control_period is not None and (control_period * 1e3) * box.width / scale.high >= 4.0:
        for index in range(math.ceil(scale.high / (control_period * 1e3) - 1e-6) + 1):
            x = scale(index * control_period * 1e3)
            if x <= box.right:
                drawing.line((x, box.top), (x, box.bottom), _PERIOD_LINE)
    for start in starts:
        drawing.line((scale(start), box.top - 14.0), (scale(start), box.bottom), _STEP_LINE)
    widest = text_width(f"{first_step + len(starts)}", _SMALL) + 8.0
    for index, (start, end) in enumerate(pairwise(starts)):
        room = scale(end) - scale(start)
        name = (
            f"step {first_step + index}"
            if room >= widest + text_width("step ", _SMALL)
            else f"{first_step + index}"
        )
        if room >= widest:
            middle = (scale(start) + scale(end)) / 2
            drawing.text((middle, box.top - 6.0), name, size=_SMALL, colour=FAINT_INK, anchor=Anchor.MIDDLE)


def _slack(drawing: Drawing, lane: Lane, time_steps: FloatArray, scale: Scale, top: float) -> None:
    """Shade the time between the end of each piece of work and its deadline."""
    origin, last = float(time_steps[0]), float(time_steps[-1])
    for _, end, deadline in lane.shown(origin, last):
        left, right = max(end, origin), min(deadline, last)
        if left < right and deadline < math.inf:
            box = Box(
                scale((left - origin) * 1e3), top + 6.0, scale((right - origin) * 1e3), top + _ROW - 6.0
            )
            drawing.rectangle(box, _SLACK)


def _bars(drawing: Drawing, lane: Lane, time_steps: FloatArray, scale: Scale, top: float) -> None:
    """Draw each piece of work of a lane."""
    origin = float(time_steps[0])
    for start, end, deadline in lane.shown(origin, float(time_steps[-1])):
        late = end > deadline
        left = scale((start - origin) * 1e3)
        # What is too short to see is shown all the same.
        right = max(scale((end - origin) * 1e3), left + 2.0)
        hint = f"{lane.name}: {lane.work.value} {(end - start) * 1e3:.2f} ms"
        drawing.rectangle(
            Box(left, top + 3.0, right, top + _ROW - 3.0),
            _OVERRUN if late else lane.work.colour,
            radius=min(2.0, (right - left) / 4),
            hint=f"{hint}, {(end - deadline) * 1e3:.2f} ms late" if late else hint,
        )


def _histogram(drawing: Drawing, box: Box, durations: FloatArray, nominal: float) -> None:
    """Draw how often a step took how long; counts on a logarithmic axis, where a single late step is seen."""
    values = durations[np.isfinite(durations)] * 1e3
    centre = nominal * 1e3
    summary = summarise(durations)
    figures = summary.format(DurationUnit.MILLISECONDS)
    heading = "Duration of a time-step"
    drawing.text((_EDGE, box.top - 32.0), heading, size=14.0, bold=True)
    drawing.text(
        (_EDGE + text_width(heading, 14.0) + 16.0, box.top - 32.0),
        f"n {summary.n}, p50 / p99 / max {figures}" if summary.n else figures,
        colour=FAINT_INK,
    )
    low, high = float(values.min(initial=centre)), float(values.max(initial=centre))
    room = max(0.06 * (high - low), 0.02 * centre)
    low, high = low - room, high + room
    scale = Scale(low, high, box.left, box.right)
    counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
    decades = max(1, math.ceil(math.log10(max(2, int(counts.max(initial=0))))))
    # Half a decade below one: a bin with a single step must not vanish.
    count_scale = Scale(-0.3, decades, box.bottom, box.top)
    for decade in range(decades + 1):
        y = count_scale(decade)
        drawing.line((box.left, y), (box.right, y), Pen(GRID))
        drawing.text(
            (box.left - 8.0, y + 4.0), f"{10**decade}", size=_SMALL, colour=FAINT_INK, anchor=Anchor.END
        )
    for count, (left, right) in zip(counts.tolist(), pairwise(edges.tolist()), strict=True):
        if count:
            bar = Box(scale(left) + 0.5, count_scale(math.log10(count)), scale(right) - 0.5, box.bottom)
            drawing.rectangle(
                bar, _LINES[0], opacity=0.85, hint=f"{left:.2f} to {right:.2f} ms: {count} steps"
            )
    x = scale(centre)
    drawing.line((x, box.top - 4.0), (x, box.bottom), Pen(INK, 1.2, (5.0, 3.0)))
    name = f"nominal {centre:g} ms"
    half = text_width(name, _SMALL) / 2
    middle = min(max(x, box.left + half), box.right - half)
    drawing.text((middle, box.top - 9.0), name, size=_SMALL, anchor=Anchor.MIDDLE)
    _x_axis(drawing, scale, box, "duration / ms")
    drawing.text((_EDGE + 10.0, (box.top + box.bottom) / 2), "steps", anchor=Anchor.MIDDLE, upwards=True)


def latenesses(
    rows: Mapping[str, FloatArray], *, title: str = "Lateness", subtitle: str = "", shortest: float = 1e-6
) -> str:
    """Draw how late things were, one row of bars a name, on one logarithmic axis from microseconds on.

    Args:
        rows: Samples by name, (n,) each, s, from top to bottom; NaN does not count.
        title: Title of the figure.
        subtitle: A second line beneath it.
        shortest: Where the axis begins, s; what is shorter is counted there.

    Returns:
        The text of an SVG file. Bars show shares on a square-root scale, so that rare samples are seen.
    """
    drawing = Drawing(_WIDTH, f"{title}. {subtitle}")
    top = _heading(drawing, title, subtitle) + 8.0
    left = _EDGE + max([60.0, *(text_width(name, 12.0) for name in rows)]) + 10.0
    samples = {name: values[np.isfinite(values)] for name, values in rows.items()}
    longest = max((float(values.max(initial=0.0)) for values in samples.values()), default=0.0)
    decades = max(1, math.ceil(math.log10(max(longest / shortest, 1.0))))
    box = Box(left, top, _WIDTH - _EDGE, top + _LATENESS_ROW * max(1, len(rows)))
    scale = Scale(0.0, float(decades), box.left, box.right)
    for decade in range(decades + 1):
        x = scale(decade)
        drawing.line((x, box.top), (x, box.bottom + 4.0), Pen(GRID))
        text = _short(shortest * 10.0**decade)
        drawing.text((x, box.bottom + 17.0), text, size=_SMALL, colour=FAINT_INK, anchor=Anchor.MIDDLE)
    for index, (name, values) in enumerate(samples.items()):
        bottom = box.top + _LATENESS_ROW * (index + 1)
        drawing.line((box.left, bottom), (box.right, bottom), Pen(FAINT_INK))
        drawing.text((box.left - 10.0, bottom - 8.0), name, anchor=Anchor.END)
        _shares(drawing, scale, decades, values / shortest, bottom, _LINES[index % len(_LINES)])
        drawing.text(
            (box.right, bottom - _LATENESS_ROW + 14.0),
            f"p50 / p99 / max {summarise(values).format()}",
            size=_SMALL,
            colour=FAINT_INK,
            anchor=Anchor.END,
        )
    drawing.text(((box.left + box.right) / 2, box.bottom + 36.0), "lateness", anchor=Anchor.MIDDLE)
    return drawing.svg(box.bottom + 52.0)


def _shares(
    drawing: Drawing, scale: Scale, decades: int, ratios: FloatArray, bottom: float, colour: str
) -> None:
    """Draw one row: how many of `ratios` (to the axis' begin) lie where."""
    if not ratios.size:
        return
    places = np.clip(np.log10(np.maximum(ratios, 1.0)), 0.0, decades)
    counts, edges = np.histogram(places, bins=20 * decades, range=(0.0, float(decades)))
    highest = math.sqrt(int(counts.max()))
    for count, (begin, end) in zip(counts.tolist(), pairwise(edges.tolist()), strict=True):
        if count:
            height = (_LATENESS_ROW - 22.0) * math.sqrt(count) / highest
            bar = Box(scale(begin) + 0.5, bottom - height, scale(end) - 0.5, bottom)
            drawing.rectangle(bar, colour, opacity=0.85, hint=f"{count} of {ratios.size}")


def _short(seconds: float) -> str:
    """Return a power of ten of a second in the unit in which it is short."""
    for unit in (DurationUnit.SECONDS, DurationUnit.MILLISECONDS):
        if seconds >= 0.999 * unit.seconds:
            return f"{seconds / unit.seconds:g} {unit.value}"
    return f"{seconds / DurationUnit.MICROSECONDS.seconds:g} us"


def curves(
    panels: Sequence[Panel], *, title: str = "Curves", subtitle: str = "", time_label: str = "time / s"
) -> str:
    """Draw curves over time, one panel beneath the other over one time axis.

    Args:
        panels: The panels, from top to bottom, e.g. one for each mode.
        title: Title of the figure.
        subtitle: A second line beneath it.
        time_label: Name and unit of the abscissa.

    Returns:
        The text of an SVG file.

    Raises:
        ConfigurationError: If there is no panel.
    """
    if not panels:
        raise ConfigurationError("curves needs at least one panel, got none")
    drawing = Drawing(_WIDTH, f"{title}. {subtitle}")
    colours = _colours(panels)
    below = _legend(drawing, _curves_legend(panels, colours), _heading(drawing, title, subtitle))
    low, high = padded([curve.time for panel in panels for curve in panel.curves], fraction=0.0)
    box = Box(0.0, 0.0, 0.0, below)
    for panel in panels:
        box = Box(_EDGE + 62.0, box.bottom + 40.0, _WIDTH - _EDGE, box.bottom + 40.0 + _PANEL)
        _panel(drawing, panel, box, (low, high), panel.limits or _shared_limits(panels, panel.label), colours)
    _x_axis(drawing, Scale(low, high, box.left, box.right), box, time_label)
    return drawing.svg(box.bottom + 54.0)


def _shared_limits(panels: Sequence[Panel], label: str) -> tuple[float, float]:
    """Return one range for all panels that show one quantity, so that they can be compared."""
    alike = [panel for panel in panels if panel.label == label]
    values = [curve.values for panel in alike for curve in panel.curves]
    return padded(values + [_marks(panel)[:, 1] for panel in alike])


def _marks(panel: Panel) -> FloatArray:
    return np.asarray(panel.marks, dtype=np.float64).reshape(-1, 2)


def _colours(panels: Sequence[Panel]) -> dict[str, str]:
    """Return the colour of each curve's name: the same in all panels."""
    curves_by_name = {curve.name: curve for panel in panels for curve in panel.curves}
    measured = [name for name, curve in curves_by_name.items() if not curve.reference]
    colours = {name: _LINES[index % len(_LINES)] for index, name in enumerate(measured)}
    return {name: colours.get(name, _REFERENCE) for name in curves_by_name}


def _curves_legend(panels: Sequence[Panel], colours: dict[str, str]) -> list[_Entry]:
    curves_by_name = {curve.name: curve for panel in panels for curve in panel.curves}
    entries = [
        _Entry(name, colours[name], pen=_pen(curve, colours)) for name, curve in curves_by_name.items()
    ]
    marks = dict.fromkeys(panel.marks_name for panel in panels if len(panel.marks))
    return entries + [_Entry(name, _OVERRUN, cross=True) for name in marks]


def _pen(curve: Curve, colours: dict[str, str]) -> Pen:
    dashes = (6.0, 4.0) if curve.reference else ()
    return Pen(colours[curve.name], 1.0 if curve.faint else 1.8, dashes, 0.55 if curve.faint else 1.0)


def _panel(
    drawing: Drawing,
    panel: Panel,
    box: Box,
    time_limits: tuple[float, float],
    limits: tuple[float, float],
    colours: dict[str, str],
) -> None:
    drawing.text((box.left, box.top - 10.0), panel.title, size=13.0, bold=True)
    drawing.text((box.right, box.top - 10.0), panel.note, colour=FAINT_INK, anchor=Anchor.END)
    time_scale = Scale(*time_limits, box.left, box.right)
    scale = Scale(*limits, box.bottom, box.top)
    for value, _ in ticks(*time_limits, most=_TIME_TICKS):
        drawing.line((time_scale(value), box.top), (time_scale(value), box.bottom), Pen(GRID))
    _y_axis(drawing, scale, box, panel.label)
    drawing.begin_clip(box)
    for curve in panel.curves:
        drawing.polyline(time_scale.array(curve.time), scale.array(curve.values), _pen(curve, colours))
    drawing.end_clip()
    for time, value in _marks(panel).tolist():
        _cross(drawing, time_scale(time), min(max(scale(value), box.top), box.bottom))
