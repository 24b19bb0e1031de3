"""What the tests of the cluster share."""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rt_lrhc.cluster.client import ControlClusterClient
from rt_lrhc.cluster.config import ClusterConfig
from rt_lrhc.cluster.controller import FloatArray
from rt_lrhc.cluster.launcher import ControlClusterServer
from rt_lrhc.cluster.reader import ClusterReader
from rt_lrhc.shm.namespace import Namespace

PERIOD = 20_000_000
"""The control period of these tests, ns."""

NAME = f"test-{os.getpid()}"
"""The namespace of these tests."""

# Lock files are kept for good reason; that of a name which nobody will use again is not worth it.
atexit.register(lambda: Namespace(NAME).lock_path.unlink(missing_ok=True))

ECHO = "rt_lrhc.testing.echo:EchoController"
CONTROLLERS = f"{Path(__file__).parent / 'cluster_controllers.py'}:"


@contextlib.contextmanager
def cluster(
    num_robots: int = 4,
    num_workers: int = 1,
    factory: Any = ECHO,
    kwargs: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Iterator[tuple[ControlClusterServer, ControlClusterClient]]:
    """A running cluster and its client, under a name that no other test run uses."""
    rest.setdefault("namespace", NAME)
    config = ClusterConfig(
        factory, num_robots, PERIOD * 1e-9, controller_kwargs=kwargs or {}, num_workers=num_workers, **rest
    )
    with ControlClusterServer(config) as server, server.connect() as client:
        yield server, client


@contextlib.contextmanager
def reader(server: ControlClusterServer) -> Iterator[ClusterReader]:
    """A passive reader of a cluster."""
    reader = ClusterReader(server.namespace)
    try:
        yield reader
    finally:
        reader.close()


def column(*values: float) -> FloatArray:
    """States or references of robots with one of each."""
    return np.array(values, np.float64)[:, None]


def worker_pids(server: ControlClusterServer) -> list[int]:
    """The processes of a cluster's workers."""
    with reader(server) as looking:
        return [int(words.pid) for words in looking.server]


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes that stand still meanwhile: a solve that takes as long as the test wants."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the process stops")
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def eventually(condition: Callable[[], bool], what: str, limit: float = 10.0) -> None:
    """Wait until `condition()` holds; fail after `limit` s."""
    give_up = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < give_up, f"not within {limit} s: {what}"
        time.sleep(0.005)


def nothing_left_of(namespace: str) -> bool:
    """Whether a namespace has neither memory nor a socket."""
    name = Namespace(namespace)
    return not (Path("/dev/shm", name.segment_name[1:]).exists() or name.socket_path.exists())


def marked_processes(mark: str) -> list[psutil.Process]:
    """Living processes whose environment has the entry `mark`, e.g. `"TEST=1"`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            entries = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if mark.encode() in entries and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def run_script(path: Path, text: str, mark: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a script with a mark in the environment of all its processes."""
    path.write_text(text)
    key, _, value = mark.partition("=")
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env={**os.environ, key: value},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
