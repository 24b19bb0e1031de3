"""THE table of fields: what the client, each worker and the server say to one another in shared memory.

Each class below is one block for each worker, with one writer. Its attributes are the fields: the arrays that a process
works on, and the rows from which the layout is made. Letters in shapes: B robots of the worker, N stages, nx states,
nu inputs, nr references, H answers in the window of a profile: the entry of answer n (counted from 0) is n modulo H.

Protocol. The client issues request q to a worker only when q - 1 is answered: payload into slot q & 1, then the words,
then `request = q`, then it rings the worker. The worker answers in the same slot, then `done = q`, then it rings the
client. A reader drains its bell first, which orders the payload before these words on every machine. Two slots keep the
last good plan whole when a worker dies while it writes.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

from rt_lrhc.cluster.controller import ControllerSpec, FloatArray, IntArray
from rt_lrhc.errors import LayoutError
from rt_lrhc.shm.arrays import Array
from rt_lrhc.shm.layout import Block, Field, Layout

CLIENT = "client"
WORKER = "worker"
SERVER = "server"

PROFILE_WINDOW = 256
"""Answers of each worker whose times and figures are kept for readers."""

NO_DEADLINE = 2**63 - 1
"""A deadline in ns that never comes."""


@dataclass(frozen=True)
class _Row:
    """One row of the table: what a field holds besides its dtype, which its type tells."""

    unit: str
    shape: tuple[str, ...]
    slotted: bool


def _word(unit: str) -> _Row:
    return _Row(unit, (), slotted=False)


def _window(unit: str, *shape: str) -> _Row:
    return _Row(unit, ("H", *shape), slotted=False)


def _slots(unit: str, *shape: str) -> _Row:
    return _Row(unit, shape, slotted=True)


@dataclass(frozen=True)
class ClientBlock:
    """What the client asks of one worker. Times are grid times in ns."""

    request: Annotated[IntArray, _word("requests issued")]
    incarnation: Annotated[IntArray, _word("life of the worker that the request is for")]
    period: Annotated[IntArray, _word("control periods")]
    time: Annotated[IntArray, _word("ns")]
    act_time: Annotated[IntArray, _word("ns")]
    deadline: Annotated[IntArray, _word("ns of CLOCK_MONOTONIC")]
    asked: Annotated[IntArray, _word("ns of CLOCK_MONOTONIC, when the request was written")]
    collected: Annotated[IntArray, _word("answers taken")]
    profile_write: Annotated[IntArray, _window("ns to write the request")]
    profile_read: Annotated[IntArray, _window("ns to take the answer")]
    profile_queue: Annotated[IntArray, _window("ns that the answer lay before it was taken")]
    states: Annotated[FloatArray, _slots("spec.state_units", "B", "nx")]
    references: Annotated[FloatArray, _slots("spec.reference_units", "B", "nr")]
    inputs_in_force: Annotated[FloatArray, _slots("spec.input_units", "B", "nu")]
    active: Annotated[IntArray, _slots("0 or 1", "B")]
    reset_epoch: Annotated[IntArray, _slots("resets of the robot", "B")]


@dataclass(frozen=True)
class WorkerBlock:
    """What one worker answers."""

    begun: Annotated[IntArray, _word("requests begun")]
    done: Annotated[IntArray, _word("number of the request that was answered last")]
    answered: Annotated[IntArray, _word("requests answered")]
    profile_wake: Annotated[IntArray, _window("ns from the request to the begin of its solve")]
    profile_wall: Annotated[IntArray, _window("ns of wall time of the batch")]
    profile_cpu: Annotated[IntArray, _window("ns of thread CPU time of the batch")]
    profile_solve: Annotated[FloatArray, _window("s of thread CPU time of the robot's solve", "B")]
    profile_iterations: Annotated[IntArray, _window("iterations", "B")]
    profile_cost: Annotated[FloatArray, _window("cost of the plan", "B")]
    profile_residual: Annotated[FloatArray, _window("infinity norm", "B")]
    failures: Annotated[IntArray, _word("answers to active robots without a usable plan")]
    incarnation: Annotated[IntArray, _slots("life of the worker that answered")]
    period: Annotated[IntArray, _slots("control periods, as in the request")]
    state_time: Annotated[IntArray, _slots("ns, grid time of the states that were solved for")]
    stage_time: Annotated[IntArray, _slots("ns, grid time of stage 0 of the plans")]
    begin: Annotated[IntArray, _slots("ns of CLOCK_MONOTONIC")]
    end: Annotated[IntArray, _slots("ns of CLOCK_MONOTONIC")]
    thread_cpu: Annotated[IntArray, _slots("ns of thread CPU time")]
    inputs: Annotated[FloatArray, _slots("spec.input_units", "B", "N", "nu")]
    states: Annotated[FloatArray, _slots("spec.state_units", "B", "N+1", "nx")]
    status: Annotated[IntArray, _slots("Status", "B")]
    reset_epoch: Annotated[IntArray, _slots("resets of the robot, as in the request", "B")]
    iterations: Annotated[IntArray, _slots("iterations", "B")]
    cost: Annotated[FloatArray, _slots("cost of the plan", "B")]
    residual: Annotated[FloatArray, _slots("infinity norm", "B")]
    solve_time: Annotated[FloatArray, _slots("s of thread CPU time", "B")]


@dataclass(frozen=True)
class ServerBlock:
    """What the server knows of one worker."""

    incarnation: Annotated[IntArray, _word("lives begun")]
    pid: Annotated[IntArray, _word("process id")]
    start_time: Annotated[IntArray, _word("clock ticks since boot")]
    lifecycle: Annotated[IntArray, _word("Lifecycle")]
    restarts: Annotated[IntArray, _word("lives begun after the first")]
    last_exit: Annotated[IntArray, _word("exit status, or minus the signal")]


_Block = TypeVar("_Block", ClientBlock, WorkerBlock, ServerBlock)
_DTYPES: dict[Any, str] = {FloatArray: "float64", IntArray: "int64"}
_TABLE: tuple[tuple[str, type[Any]], ...] = (
    (CLIENT, ClientBlock),
    (WORKER, WorkerBlock),
    (SERVER, ServerBlock),
)


@dataclass(frozen=True)
class ClusterShape:
    """All that the layout of a cluster follows from.

    Attributes:
        spec: What the controllers are.
        num_robots: Robots.
        num_workers: Workers, at most one a robot.
        control_period_ns: Time between two triggers, ns.
    """

    spec: ControllerSpec
    num_robots: int
    num_workers: int
    control_period_ns: int

    @property
    def rows(self) -> tuple[slice, ...]:
        """The robots of each worker: contiguous, in order, as even as can be."""
        edges = [worker * self.num_robots // self.num_workers for worker in range(self.num_workers + 1)]
        return tuple(slice(begin, end) for begin, end in itertools.pairwise(edges))

    def layout(self) -> Layout:
        """Return the layout of the cluster's segment."""
        blocks = []
        for worker, rows in enumerate(self.rows):
            sizes = {
                "B": rows.stop - rows.start,
                "N": self.spec.num_stages,
                "N+1": self.spec.num_stages + 1,
                "nx": self.spec.nx,
                "nu": self.spec.nu,
                "nr": self.spec.nr,
                "H": PROFILE_WINDOW,
            }
            for writer, table in _TABLE:
                blocks.append(Block(f"{writer}{worker}", writer, _rows_of(table, sizes)))
        attributes = {
            "kind": "control cluster",
            "spec": spec_to_json(self.spec),
            "num_robots": self.num_robots,
            "num_workers": self.num_workers,
            "control_period_ns": self.control_period_ns,
        }
        return Layout(tuple(blocks), attributes)

    @classmethod
    def from_layout(cls, layout: Layout) -> "ClusterShape":
        """Return the shape that a segment's attributes describe.

        Raises:
            LayoutError: If they describe none.
        """
        attributes = layout.attributes
        try:
            if attributes["kind"] != "control cluster":
                raise ValueError(f"kind {attributes['kind']!r}")
            numbers = [int(attributes[key]) for key in ("num_robots", "num_workers", "control_period_ns")]
            if not 1 <= numbers[1] <= numbers[0] or numbers[2] < 1:
                raise ValueError(
                    f"{numbers[0]} robots, {numbers[1]} workers, {numbers[2]} ns a control period"
                )
            if numbers[1] * len(_TABLE) != len(layout.blocks):
                raise ValueError(f"{numbers[1]} workers, but {len(layout.blocks)} blocks")
            return cls(spec_from_json(attributes["spec"]), *numbers)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise LayoutError(
                f"the segment is not a control cluster: {type(error).__name__}: {error}"
            ) from error


def block_of(table: type[_Block], arrays: Mapping[str, Mapping[str, Array]], worker: int) -> _Block:
    """Return one worker's block of a bound segment, e.g. `block_of(WorkerBlock, arrays, 0)`."""
    writer = next(writer for writer, one in _TABLE if one is table)
    return table(**arrays[f"{writer}{worker}"])


def spec_to_json(spec: ControllerSpec) -> dict[str, Any]:
    """Return a controller's spec as JSON values; infinite bounds, which JSON lacks, become strings."""
    document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(spec)))
    for key in ("input_lower", "input_upper"):
        document[key] = [value if math.isfinite(value) else str(value) for value in document[key]]
    return document


def spec_from_json(document: Mapping[str, Any]) -> ControllerSpec:
    """Return the spec that `spec_to_json` wrote.

    Raises:
        TypeError, ValueError: If it is none.
    """
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
    for key in ("input_lower", "input_upper", "safe_input"):
        values[key] = tuple(float(value) for value in values[key])
    return ControllerSpec(**values)


def _rows_of(table: type[Any], sizes: Mapping[str, int]) -> tuple[Field, ...]:
    fields = []
    for name, hint in get_type_hints(table, include_extras=True).items():
        array, row = hint.__origin__, hint.__metadata__[0]
        shape = tuple(sizes[letter] for letter in row.shape)
        fields.append(Field(name, shape, _DTYPES[array], row.unit, row.slotted))
    return tuple(fields)
