import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_lrhc.errors import ConfigurationError
from rt_lrhc.timing.statistics import DurationUnit, Rows, Samples, Summary, summarise

numbers = st.floats(-1e6, 1e6)
batches = st.lists(st.one_of(numbers, st.lists(numbers, max_size=20)), max_size=15)


@given(capacity=st.integers(1, 8), batches=batches)
def test_samples_keep_the_last_ones_in_order(capacity: int, batches: list[float | list[float]]) -> None:
    samples, model = Samples(capacity), []
    for batch in batches:
        if isinstance(batch, list):
            samples.add_many(np.array(batch))
            model += batch
        else:
            samples.add(batch)
            model.append(batch)
        assert samples.values().tolist() == model[-capacity:]
        assert (len(samples), samples.total) == (min(len(model), capacity), len(model))
    samples.clear()
    assert (len(samples), samples.summary().n) == (0, 0)


@given(capacity=st.integers(1, 8), rows=st.lists(st.tuples(numbers, numbers), max_size=30))
def test_rows_keep_the_last_ones_in_order(capacity: int, rows: list[tuple[float, float]]) -> None:
    kept = Rows(capacity, columns=2)
    for row in rows:
        kept.add(*row)
    assert [tuple(row) for row in kept.values().tolist()] == rows[-capacity:]


def test_what_a_recorder_returned_does_not_change_later() -> None:
    samples, rows = Samples(4), Rows(4, columns=2)
    samples.add(1.0)
    rows.add(1.0, 2.0)
    before = samples.values(), rows.values()
    for _ in range(9):
        samples.add(7.0)
        rows.add(7.0, 7.0)
    assert before[0].tolist() == [1.0]
    assert before[1].tolist() == [[1.0, 2.0]]


@given(values=st.lists(numbers, min_size=1, max_size=50), unknown=st.integers(0, 5))
def test_a_summary_orders_its_figures_and_leaves_out_what_was_not_measured(
    values: list[float], unknown: int
) -> None:
    summary = summarise(np.array(values + [math.nan] * unknown))
    assert summary.n == len(values)
    assert min(values) <= summary.p50 <= summary.p99 <= summary.max == max(values)
    assert sum(value <= summary.p50 for value in values) * 2 >= summary.n


def test_percentiles_are_interpolated_between_samples() -> None:
    assert summarise(np.arange(101.0)) == Summary(n=101, p50=50.0, p99=99.0, max=100.0, mean=50.0)
    assert summarise(np.array([1.0, 2.0])).p50 == 1.5


@pytest.mark.parametrize(
    ("durations", "unit", "text"),
    [
        ((0.0200, 0.0204, 0.0213), None, "20.0 / 20.4 / 21.3 ms"),
        ((0.00523, 0.0061, 0.0114), None, "5.23 / 6.10 / 11.40 ms"),
        ((55e-6, 84e-6, 1.2e-3), None, "55.0 / 84.0 / 1200.0 us"),
        ((55e-6, 84e-6, 1.2e-3), DurationUnit.MILLISECONDS, "0.055 / 0.084 / 1.200 ms"),
        ((2.0, 3.0, 123.0), None, "2.00 / 3.00 / 123.00 s"),
        ((250e-3, 251e-3, 1.0), None, "250 / 251 / 1000 ms"),
        ((0.0, 0.0, 0.0), None, "0.0 / 0.0 / 0.0 us"),
    ],
)
def test_durations_read_with_three_digits_of_the_median(
    durations: tuple[float, float, float], unit: DurationUnit | None, text: str
) -> None:
    assert Summary(9, *durations, mean=math.nan).format(unit) == text


def test_a_summary_of_nothing_says_so() -> None:
    summary = summarise(np.array([math.nan]))
    assert (summary.n, summary.format()) == (0, "no samples")
    assert math.isnan(summary.max)


@pytest.mark.parametrize("make", [lambda: Samples(0), lambda: Rows(0, columns=1), lambda: Rows(5, columns=0)])
def test_a_recorder_of_nothing_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        make()
