"""Just enough SVG to draw a figure by hand: shapes, text, ticks, scales. Coordinates are pixels, y grows downwards."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

FONT = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
INK = "#1f2328"
FAINT_INK = "#59636e"
GRID = "#d9dee4"

_NARROW = set("iljtfrI.,:;'|!()[]/- ")
_WIDE = set("mwMWOQ%@")


class Anchor(Enum):
    """Which end of a text its position means. The value is SVG's word."""

    START = "start"
    MIDDLE = "middle"
    END = "end"


@dataclass(frozen=True)
class Pen:
    """How a line is drawn: colour, width in pixels, dash pattern, opacity in [0, 1]."""

    colour: str = INK
    width: float = 1.0
    dashes: tuple[float, ...] = ()
    opacity: float = 1.0

    def attributes(self) -> str:
        """Return the attributes of an SVG element drawn with this pen."""
        dashes = f' stroke-dasharray="{" ".join(map(_number, self.dashes))}"' if self.dashes else ""
        opacity = f' stroke-opacity="{self.opacity:g}"' if self.opacity < 1.0 else ""
        return f'stroke="{self.colour}" stroke-width="{self.width:g}"{dashes}{opacity}'


@dataclass(frozen=True)
class Box:
    """An upright rectangle, pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Its width."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Its height."""
        return self.bottom - self.top


@dataclass(frozen=True)
class Scale:
    """A linear map from values in [low, high] to pixels in [start, end] (end below start turns the axis round)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def array(self, values: FloatArray) -> FloatArray:
        """Return the pixels of `values`, same shape."""
        return self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start)


class Drawing:
    """A picture under construction. It brings its own white background, so that it reads on a dark page, too.

    Args:
        width: Width, pixels; the height is known when the picture is done.
        description: What it shows, for those who cannot see it.
    """

    def __init__(self, width: float, description: str) -> None:
        self._width = width
        self._description = description
        self._elements: list[str] = []
        self._clips = 0

    def rectangle(
        self,
        box: Box,
        fill: str,
        *,
        outline: str = "none",
        opacity: float = 1.0,
        radius: float = 0.0,
        hint: str = "",
    ) -> None:
        """Draw a filled rectangle; `hint` appears under the pointer."""
        title = f"<title>{escape(hint)}</title>" if hint else ""
        self._elements.append(
            f'<rect x="{_number(box.left)}" y="{_number(box.top)}" width="{_number(max(0.0, box.width))}" '
            f'height="{_number(max(0.0, box.height))}" rx="{radius:g}" fill="{fill}" fill-opacity="{opacity:g}" '
            f'stroke="{outline}">{title}</rect>'
        )

    def line(self, start: tuple[float, float], end: tuple[float, float], pen: Pen) -> None:
        """Draw a straight line."""
        self._elements.append(
            f'<line x1="{_number(start[0])}" y1="{_number(start[1])}" x2="{_number(end[0])}" y2="{_number(end[1])}" '
            f"{pen.attributes()}/>"
        )

    def polyline(self, x: FloatArray, y: FloatArray, pen: Pen) -> None:
        """Draw a line through points, (n,) each; NaN interrupts it."""
        known = np.isfinite(x) & np.isfinite(y)
        breaks = np.flatnonzero(np.diff(known.astype(np.int8))) + 1
        for piece in np.split(np.arange(known.size), breaks):
            if piece.size and known[piece[0]]:
                points = " ".join(f"{_number(x[i])},{_number(y[i])}" for i in piece)
                self._elements.append(
                    f'<polyline points="{points}" fill="none" stroke-linejoin="round" {pen.attributes()}/>'
                )

    def text(
        self,
        position: tuple[float, float],
        text: str,
        *,
        size: float = 12.0,
        colour: str = INK,
        anchor: Anchor = Anchor.START,
        bold: bool = False,
        upwards: bool = False,
    ) -> None:
        """Write one line of text; `position` is on its base line. `upwards` turns it by 90 degrees."""
        x, y = map(_number, position)
        weight = ' font-weight="600"' if bold else ""
        turn = f' transform="rotate(-90 {x} {y})"' if upwards else ""
        self._elements.append(
            f'<text x="{x}" y="{y}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor.value}"{weight}{turn}>'
            f"{escape(text)}</text>"
        )

    def begin_clip(self, box: Box) -> None:
        """Show what follows, up to `end_clip`, only inside `box`."""
        self._clips += 1
        name = f"clip{self._clips}"
        self._elements.append(
            f'<clipPath id="{name}"><rect x="{_number(box.left)}" y="{_number(box.top)}" '
            f'width="{_number(box.width)}" height="{_number(box.height)}"/></clipPath><g clip-path="url(#{name})">'
        )

    def end_clip(self) -> None:
        """End the part that `begin_clip` began."""
        self._elements.append("</g>")

    def svg(self, height: float) -> str:
        """Return the picture, `height` pixels high, as the text of an SVG file."""
        width, tall = _number(self._width), _number(height)
        return "\n".join(
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall}" width="{width}" height="{tall}" '
                f'role="img" aria-label={quoteattr(self._description)} font-family="{FONT}">',
                f"<title>{escape(self._description)}</title>",
                f'<rect x="0.5" y="0.5" width="{_number(self._width - 1.0)}" height="{_number(height - 1.0)}" rx="8" '
                f'fill="#ffffff" stroke="{GRID}"/>',
                *self._elements,
                "</svg>\n",
            )
        )


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def text_width(text: str, size: float) -> float:
    """Estimate the width of `text` in a sans-serif font of `size` pixels; rather too much than too little."""
    widths = (0.34 if letter in _NARROW else 0.9 if letter in _WIDE else 0.62 for letter in text)
    return size * sum(widths)


def ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Return round values (1, 2 or 5 times a power of ten apart) in [low, high], at most one more than `most`.

    Each comes with its text, which has as many decimals as tell them apart, and a proper minus.
    """
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [index * step for index in range(first, last + 1)]
    return [(value, f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")) for value in values]


def padded(values: Iterable[FloatArray], fraction: float = 0.06) -> tuple[float, float]:
    """Return a range that holds all finite `values` with some room around them."""
    finite = [array[np.isfinite(array)] for array in values]
    kept = np.concatenate([array.ravel() for array in finite]) if finite else np.empty(0)
    if kept.size == 0:
        return 0.0, 1.0
    low, high = float(kept.min()), float(kept.max())
    room = fraction * (high - low) if high > low else max(abs(low), 1.0) * 0.5
    return low - room, high + room
