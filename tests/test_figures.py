import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_lrhc.errors import ConfigurationError
from rt_lrhc.figures import Curve, Lane, Panel, Work, curves, latenesses, timeline
from rt_lrhc.svg import text_width, ticks

SVG = "{http://www.w3.org/2000/svg}"
RED = "#c1121f"
SLACK = "#e9ecef"
names = st.text(
    st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=20
).filter(str.strip)


def parse(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def filled(root: ElementTree.Element, colour: str, *, legend: bool = False) -> list[ElementTree.Element]:
    """The rectangles of one colour; those of the legend are 24 pixels wide and 10 high."""
    found = [element for element in root.iter(f"{SVG}rect") if element.get("fill") == colour]
    return [
        element
        for element in found
        if legend == ((element.get("width"), element.get("height")) == ("24", "10"))
    ]


def assert_no_text_covers_another(root: ElementTree.Element) -> None:
    """Texts on one base line, as wide as they are estimated to be, stand side by side within the picture."""
    lines: dict[str | None, list[tuple[float, float]]] = {}
    for element in root.iter(f"{SVG}text"):
        if element.get("transform") is None:
            width = text_width(element.text or "", float(element.get("font-size", "0")))
            share = {"start": 0.0, "middle": 0.5, "end": 1.0}[element.get("text-anchor", "")]
            left = float(element.get("x", "0")) - share * width
            lines.setdefault(element.get("y"), []).append((left, left + width))
    for line in lines.values():
        for (_, right), (left, _) in itertools.pairwise(sorted(line)):
            assert right <= left + 1e-6


def draw(lanes: list[Lane], **options: object) -> ElementTree.Element:
    steps = 100.0 + 0.05 * np.arange(11)
    settings = {
        "time_steps": steps,
        "step_durations": np.full(20, 0.05),
        "time_step_duration": 0.05,
    } | options
    return parse(timeline(lanes, **settings))


@given(names=st.lists(names, min_size=1, max_size=6), title=names)
def test_any_name_is_shown_as_it_is(names: list[str], title: str) -> None:
    spans = np.array([[100.01, 100.02]])
    shown = texts(draw([Lane(name, Work.SOLVE, spans) for name in names], title=title))
    assert {title, *names} <= set(shown)
    time = np.arange(3.0)
    panel = Panel(title, title, tuple(Curve(name, time, time) for name in names), note=title)
    assert {title, *names} <= set(texts(parse(curves([panel], title=title))))


@given(names=st.lists(names, min_size=1, max_size=12, unique=True), first_step=st.integers(0, 10**7))
def test_no_text_covers_another(names: list[str], first_step: int) -> None:
    lanes = [
        Lane(name, work, np.empty((0, 2)), np.empty(0)) for name, work in zip(names, itertools.cycle(Work))
    ]
    assert_no_text_covers_another(draw(lanes, first_step=first_step, control_period=0.01))
    panel = Panel("panel", "value / m", tuple(Curve(name, np.arange(2.0), np.arange(2.0)) for name in names))
    assert_no_text_covers_another(parse(curves([panel, panel])))


@given(
    work=st.lists(st.tuples(st.floats(0.0, 0.49), st.floats(0.0, 0.1), st.floats(-0.05, 0.05)), max_size=20),
)
def test_what_ends_after_its_deadline_is_red_and_what_ends_before_leaves_slack(
    work: list[tuple[float, float, float]],
) -> None:
    spans = np.array([[100.0 + start, 100.0 + start + duration] for start, duration, _ in work]).reshape(
        -1, 2
    )
    left = np.array([slack for _, _, slack in work])
    deadlines = spans[:, 1] + left
    root = draw([Lane("worker 0", Work.SOLVE, spans, deadlines)])
    shown = (spans[:, 1] > 100.0) & (spans[:, 0] < 100.5)
    late = spans[:, 1] > deadlines
    assert len(filled(root, RED)) == np.count_nonzero(shown & late)
    assert len(filled(root, Work.SOLVE.colour)) == np.count_nonzero(shown & ~late)
    in_sight = shown & (deadlines > spans[:, 1]) & (spans[:, 1] < 100.5)
    assert len(filled(root, SLACK)) == np.count_nonzero(in_sight)


def test_bars_lie_at_their_times_on_the_axis() -> None:
    """The axis spans 10 time-steps; a bar over steps 2 and 3 takes a fifth of its width, two tenths from its start."""
    root = draw([Lane("plant", Work.PLANT, np.array([[100.1, 100.2]]))])
    (bar,) = filled(root, Work.PLANT.colour)
    (clip,) = root.iter(f"{SVG}clipPath")
    axis = clip[0]
    start, width = float(axis.get("x", "")), float(axis.get("width", ""))
    assert float(bar.get("x", "")) == pytest.approx(start + 0.2 * width, abs=0.02)
    assert float(bar.get("width", "")) == pytest.approx(0.2 * width, abs=0.02)


def test_work_too_short_for_a_pixel_is_still_seen() -> None:
    root = draw([Lane("capture", Work.CAPTURE, np.array([[100.1, 100.1 + 1e-6]]))])
    (bar,) = filled(root, Work.CAPTURE.colour)
    assert float(bar.get("width", "")) >= 2.0


def test_the_legend_names_what_is_there_and_nothing_else() -> None:
    spans = np.array([[100.01, 100.02]])
    plain = draw([Lane("agent", Work.AGENT, spans)])
    assert {"inference", "time-step"} <= set(texts(plain))
    assert not {"solve", "physics", "capture", "slack", "overrun", "control period"} & set(texts(plain))
    full = draw([Lane("worker", Work.SOLVE, spans, spans[:, 1])], control_period=0.025)
    assert {"solve", "slack", "overrun", "control period"} <= set(texts(full))
    assert len(filled(full, RED, legend=True)) == 1


@given(durations=st.lists(st.one_of(st.floats(0.0, 1.0), st.just(math.nan)), max_size=60))
def test_the_histogram_counts_every_measured_step_once(durations: list[float]) -> None:
    root = draw([], step_durations=np.array(durations))
    bars = [title.text or "" for title in root.iter(f"{SVG}title") if (title.text or "").endswith("steps")]
    assert sum(int(bar.split(": ")[1].split()[0]) for bar in bars) == sum(
        not math.isnan(d) for d in durations
    )


@pytest.mark.parametrize("time_steps", [[], [1.0], [1.0, 1.0], [2.0, 1.0], [1.0, math.nan]])
def test_a_time_line_without_a_time_step_is_refused(time_steps: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="time_steps"):
        draw([], time_steps=np.array(time_steps))


def test_shapes_that_do_not_fit_are_refused_with_the_name() -> None:
    with pytest.raises(ConfigurationError, match=r"'worker 7'.*\(n, 2\)"):
        Lane("worker 7", Work.SOLVE, np.zeros(3))
    with pytest.raises(ConfigurationError, match=r"'worker 7'.*each of the 2 spans"):
        Lane("worker 7", Work.SOLVE, np.zeros((2, 2)), np.zeros(3))
    with pytest.raises(ConfigurationError, match=r"'robot 3'.*one shape"):
        Curve("robot 3", np.zeros(3), np.zeros(4))
    with pytest.raises(ConfigurationError, match="at least one panel"):
        curves([])


def polylines(root: ElementTree.Element) -> list[ElementTree.Element]:
    return list(root.iter(f"{SVG}polyline"))


def test_a_value_that_is_not_known_interrupts_its_curve() -> None:
    values = np.array([math.nan, 1.0, 2.0, math.nan, math.nan, 3.0, 4.0, math.nan])
    root = parse(curves([Panel("panel", "value", (Curve("robot", np.arange(8.0), values),))]))
    assert [len(line.get("points", "").split()) for line in polylines(root)] == [2, 2]


def test_a_curve_has_one_colour_in_all_panels_and_a_reference_is_dashed() -> None:
    time = np.arange(4.0)
    reference, first = Curve("reference", time, time, reference=True), Curve("robot 0", time, time)
    second = Curve("robot 1", time, time)
    root = parse(curves([Panel("a", "x", (reference, first)), Panel("b", "x", (second, first, reference))]))
    lines = [(line.get("stroke"), line.get("stroke-dasharray") is not None) for line in polylines(root)]
    assert lines[1] == lines[3] != lines[2]
    assert lines[0] == lines[4]
    assert [dashed for _, dashed in lines] == [True, False, False, False, True]
    assert texts(root).count("robot 0") == 1


def test_panels_of_one_quantity_share_their_range() -> None:
    time = np.arange(2.0)
    small, large = Curve("robot", time, np.array([0.0, 1.0])), Curve("robot", time, np.array([0.0, 10.0]))
    root = parse(curves([Panel("a", "position / m", (small,)), Panel("b", "position / m", (large,))]))

    def height(line: ElementTree.Element) -> float:
        first, last = (float(point.split(",")[1]) for point in line.get("points", "").split())
        return first - last

    assert height(polylines(root)[1]) == pytest.approx(10.0 * height(polylines(root)[0]), rel=0.01)


def test_marks_outside_the_range_stay_at_its_edge() -> None:
    curve = Curve("robot", np.arange(3.0), np.zeros(3))
    panel = Panel("a", "x", (curve,), limits=(-1.0, 1.0), marks=np.array([[1.0, 50.0]]), marks_name="fell")
    root = parse(curves([panel]))
    crosses = [line for line in root.iter(f"{SVG}line") if line.get("stroke") == RED]
    assert len(crosses) == 2 * 2  # one in the legend, one in the panel
    assert all(float(line.get("y1", "")) > 0.0 for line in crosses)
    assert "fell" in texts(root)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), most=st.integers(2, 12))
def test_ticks_are_few_within_the_range_and_told_apart(low: float, span: float, most: int) -> None:
    found = ticks(low, low + span, most)
    assert len(found) <= most + 1
    assert len({text for _, text in found}) == len(found)
    for value, text in found:
        assert low - 1e-6 * span <= value <= low + span * (1 + 1e-6)
        assert float(text.replace("\N{MINUS SIGN}", "-")) == pytest.approx(value, rel=1e-9, abs=1e-9)


@given(samples=st.lists(st.floats(0.0, 0.1), min_size=1, max_size=50), rows=st.integers(1, 4))
def test_every_lateness_is_counted_once_in_its_row(samples: list[float], rows: int) -> None:
    picture = latenesses({f"row {k}": np.array([*samples, np.nan]) for k in range(rows)})
    ElementTree.fromstring(picture)
    counts = [int(count) for count in re.findall(rf"<title>(\d+) of {len(samples)}</title>", picture)]
    assert sum(counts) == rows * len(samples)
