"""A list that repeats itself takes the memory of its changes."""

from hypothesis import given
from hypothesis import strategies as st

from rt_lrhc.timing.run_lengths import RunLengths


@given(st.lists(st.integers(0, 2)))
def test_it_is_the_list_that_was_appended(values: list[int]) -> None:
    record: RunLengths[int] = RunLengths()
    for value in values:
        record.append(value)
    assert list(record) == values and len(record) == len(values)
    assert record.runs == sum(1 for k, value in enumerate(values) if k == 0 or values[k - 1] != value)
    record.clear()
    assert list(record) == [] and len(record) == record.runs == 0
