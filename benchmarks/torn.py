"""Whether a reader of shared slots ever gets half of one plan and half of another.

A client asks and a worker answers without a pause, in the protocol of `rt_lrhc/cluster/fields.py`, over a real segment
and real doorbells. While the worker writes one slot the client reads the last whole answer in the other,
then the new one. Each answer carries a checksum of its payload, and each read is checked. At random moments the worker
is killed, in the middle of a write if it so happens, and another takes over.

Exit code 1 if one read was torn.

    python benchmarks/torn.py [--reads N] [--kills N] [--words N] [--json FILE]
"""

import math
import os
import random
import select
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tyro
from common import Report

from rt_lrhc.shm.arrays import bind
from rt_lrhc.shm.doorbell import Doorbell
from rt_lrhc.shm.layout import Block, Field, Layout, create
from rt_lrhc.shm.segment import Segment

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """What to measure: reads, kills of the writer among them, and 8-byte words of the payload."""

    reads: int = 10_000_000
    kills: int = 1000
    words: int = 400
    json: Path | None = None


def layout(words: int) -> Layout:
    """A request counter of the client; a payload of two slots and an answer counter of the worker."""
    client = (Field("request", (), "int64", "requests issued"),)
    worker = (
        Field("done", (), "int64", "requests answered"),
        Field("sum", (), "int64", "checksum", slotted=True),
        Field("payload", (words,), "int64", "random", slotted=True),
    )
    return Layout((Block("client", "client", client), Block("worker", "worker", worker)), {"words": words})


def answer(segment: Segment, shape: Layout, go: Doorbell, done: Doorbell, life: int) -> None:
    """Answer requests as a worker does: payload, then words, then the bell; for ever."""
    arrays = bind(segment, shape, writers=("worker",))
    request, mine = arrays["client"]["request"], arrays["worker"]
    generator = np.random.default_rng(life)
    noise: IntArray = generator.integers(-(2**62), 2**62, size=mine["payload"].shape[1])
    while True:
        go.wait(1.0)
        go.drain()
        number = int(request)
        if number == mine["done"]:
            continue
        slot = number & 1
        np.add(noise, number, out=mine["payload"][slot])
        mine["sum"][slot] = checksum(mine["payload"][slot])
        mine["done"][...] = number
        done.ring()


def checksum(payload: IntArray) -> int:
    """A sum that tells two payloads apart, and a payload from a mixture of two: odd weights, modulo 2^64."""
    return int(np.dot(payload, np.arange(1, 2 * len(payload), 2)))


def is_torn(worker: Mapping[str, IntArray], slot: int) -> bool:
    """Whether a copy of a slot is not what its writer summed up."""
    return bool(checksum(worker["payload"][slot].copy()) != worker["sum"][slot])


def start(segment: Segment, shape: Layout, go: Doorbell, done: Doorbell, life: int) -> tuple[int, int]:
    """Fork a worker; return its pid and pidfd."""
    pid = os.fork()
    if pid == 0:
        try:
            answer(segment, shape, go, done, life)
        finally:
            os._exit(1)
    return pid, os.pidfd_open(pid)


def measure(options: Options, report: Report) -> int:
    """Read, check and kill as often as is asked; return how many reads were torn."""
    shape = layout(options.words)
    segment = create(f"/rt_lrhc_torn.{os.getpid()}", shape)
    segment.unlink()
    go, done = Doorbell.create(), Doorbell.create()
    life = 1
    pid, pidfd = start(segment, shape, go, done, life)
    arrays = bind(segment, shape, writers=("client",))
    request, theirs = arrays["client"]["request"], arrays["worker"]
    draw = random.Random(0)
    kills = iter(sorted(draw.sample(range(1, options.reads), min(options.kills, options.reads - 1))))
    next_kill = next(kills, math.inf)
    torn = reads = number = 0
    poll = select.poll()
    poll.register(done.fd, select.POLLIN)
    begin = time.perf_counter()
    try:
        while reads < options.reads:
            number += 1
            # As the client does: the next request goes to the slot that does not hold the last whole answer.
            number += 1 - ((number ^ int(theirs["done"])) & 1)
            request[...] = number
            go.ring()
            if number > 1:
                torn += is_torn(theirs, int(theirs["done"]) & 1)
                reads += 1
            if reads >= next_kill:
                next_kill = next(kills, math.inf)
                time.sleep(draw.uniform(0.0, 100e-6))
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os.close(pidfd)
                life += 1
                pid, pidfd = start(segment, shape, go, done, life)
                go.ring()
            give_up = time.monotonic() + 10.0
            while not (done.drain() and theirs["done"] == number):
                poll.poll(100)
                if time.monotonic() > give_up:
                    raise TimeoutError(f"request {number} was never answered: a ring was lost")
            torn += is_torn(theirs, number & 1)
            reads += 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
        go.close()
        done.close()
    report.value("reads", reads)
    report.value("kills of the writer", life - 1)
    report.value("torn", torn)
    report.value("reads per second", reads / (time.perf_counter() - begin))
    del arrays, request, theirs
    segment.close()
    return torn


def main(options: Options) -> int:
    """Run and return the exit code."""
    report = Report()
    report.header()
    torn = measure(options, report)
    report.save(options.json)
    return 1 if torn else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
