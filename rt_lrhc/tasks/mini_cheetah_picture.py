"""Pictures of the mini cheetah's tasks."""

from importlib import resources

import cv2
import numpy as np
import numpy.typing as npt

from rt_lrhc.errors import RenderError
from rt_lrhc.simulators.mini_cheetah import load_model
from rt_lrhc.simulators.pictures import RenderedView, StickView, tile
from rt_lrhc.tasks.context import TaskContext
from rt_lrhc.tasks.mini_cheetah_terms import twist_in_heading

_INK = (60, 60, 60)


class Picture:
    """Draws mini cheetahs beside each other: rendered where OpenGL works, else as sticks."""

    MOST = 4
    """Robots that are drawn at most."""

    def __init__(self) -> None:
        self._view: RenderedView | StickView | None = None

    def __call__(self, context: TaskContext) -> npt.NDArray[np.uint8]:
        """Return a picture of the first robots, with what is asked of them and what they do."""
        shown = min(context.num_robots, self.MOST)
        if self._view is None:
            self._view = _open_view()
        pictures = self._view.draw(context.states[:shown, :19])
        measured = twist_in_heading(context)
        for robot, picture in enumerate(pictures):
            lines = (
                f"robot {robot}   {context.time[robot]:.2f} s   height {context.states[robot, 2]:.2f} m",
                "commanded {:+.2f} {:+.2f} m/s {:+.2f} rad/s".format(*context.command("twist")[robot]),
                "measured  {:+.2f} {:+.2f} m/s {:+.2f} rad/s".format(*measured[robot]),
            )
            for row, text in enumerate(lines):
                place = (8, 18 + 16 * row)
                cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
        return tile(pictures)

    def close(self) -> None:
        """End the process that renders."""
        if self._view is not None:
            self._view.close()
            self._view = None


def _open_view() -> RenderedView | StickView:
    text = resources.files("rt_lrhc.simulators").joinpath("mini_cheetah.xml").read_text(encoding="utf-8")
    try:
        return RenderedView(text, camera="beside")
    except RenderError:
        return StickView(load_model())
