"""A passive look at a running cluster: attaches read-only by name, disturbs nobody."""

from rt_lrhc.cluster.fields import ClientBlock, ClusterShape, ServerBlock, WorkerBlock, block_of
from rt_lrhc.errors import SharedMemoryError
from rt_lrhc.shm.arrays import bind
from rt_lrhc.shm.header import SegmentState, read_state
from rt_lrhc.shm.layout import inspect, require_equal
from rt_lrhc.shm.namespace import Namespace
from rt_lrhc.shm.segment import Segment


class ClusterReader:
    """Read-only views of a cluster's memory, for people and dashboards.

    What it shows may be torn, because it hears no bells: good to look at, not to control by.

    Attributes:
        shape: The controllers' spec, robots and workers.
        client: What the client asks of each worker.
        workers: What each worker answers.
        server: What the server knows of each worker.
    """

    def __init__(self, namespace: str) -> None:
        """Attach.

        Raises:
            SharedMemoryError: If there is no such cluster, its owner is gone, or its memory cannot be trusted.
            LayoutError: If this program and the cluster do not agree on the fields.
        """
        self._segment = Segment.attach(Namespace(namespace).segment_name)
        try:
            header, layout = inspect(self._segment)
            self._header = header
            if not header.owner_is_alive():
                raise SharedMemoryError(
                    f"the cluster {namespace!r} was left behind by process {header.owner_pid}, which is gone; "
                    "remove it with `rt-lrhc doctor --clean`"
                )
            self.shape = ClusterShape.from_layout(layout)
            require_equal(self.shape.layout(), layout)
            arrays = bind(self._segment, layout)
        except BaseException:
            self._segment.close()
            raise
        workers = range(self.shape.num_workers)
        self.client = [block_of(ClientBlock, arrays, worker) for worker in workers]
        self.workers = [block_of(WorkerBlock, arrays, worker) for worker in workers]
        self.server = [block_of(ServerBlock, arrays, worker) for worker in workers]

    @property
    def is_running(self) -> bool:
        """Whether the server lives, and has not begun to end."""
        return self._header.owner_is_alive() and read_state(self._segment) is SegmentState.READY

    def close(self) -> None:
        """Let go of the memory. May be called twice."""
        for blocks in (self.client, self.workers, self.server):
            blocks.clear()
        self._segment.close()
