"""Draw lines of text with NumPy alone: a 5x7 bitmap font, enlarged and softened, on a page that is not quite even."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Seven rows of five pixels a glyph, two hexadecimal digits a row, the lowest bit at the right.
FONT = {
    " ": "00000000000000", "A": "0E11111F111111", "B": "1E11111E11111E", "C": "0E11101010110E", "D": "1E11111111111E",
    "E": "1F10101E10101F", "F": "1F10101E101010", "G": "0E11101711110F", "H": "1111111F111111", "I": "0E04040404040E",
    "J": "0702020202120C", "K": "11121418141211", "L": "1010101010101F", "M": "111B1515111111", "N": "11111915131111",
    "O": "0E11111111110E", "P": "1E11111E101010", "Q": "0E11111115120D", "R": "1E11111E141211", "S": "0F10100E01011E",
    "T": "1F040404040404", "U": "1111111111110E", "V": "11111111110A04", "W": "11111115151B11", "X": "11110A040A1111",
    "Y": "11110A04040404", "Z": "1F01020408101F", "0": "0E11131519110E", "1": "040C040404040E", "2": "0E11010204081F",
    "3": "1F02040201110E", "4": "02060A121F0202", "5": "1F101E0101110E", "6": "0608101E11110E", "7": "1F010204080808",
    "8": "0E11110E11110E", "9": "0E11110F01020C", ".": "00000000000C0C", ",": "000000000C0408", ":": "000C0C000C0C00",
    "-": "0000001F000000", "/": "01010204081010", "%": "18190204081303", "+": "0004041F040400", "=": "00001F001F0000",
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A line of text: position of its upper left corner and size of a font pixel, all in pixels, and its grey value."""

    text: str
    x: int
    y: int
    scale: int
    grey: float = 30.0


def glyphs(text: str) -> np.ndarray:
    """0/1 coverage, [7, 6 * len(text)], one empty column after each glyph."""
    rows = np.zeros((7, 6 * len(text)), np.float32)
    for column, char in enumerate(text):
        bits = np.frombuffer(bytes.fromhex(FONT[char]), np.uint8)
        rows[:, 6 * column : 6 * column + 5] = np.unpackbits(bits[:, None], axis=1)[:, 3:]
    return rows


def page(height: int, width: int, lines: list[Line], *, seed: int = 0, paper: float = 225.0) -> np.ndarray:
    """An image [height, width, 3] of 0..255 float32: paper with a shade and sensor noise, and the lines on it."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    shade = paper - 25 * down / height - 15 * across / width
    image = np.repeat(shade[..., None], 3, axis=2) * np.array([1.0, 0.98, 0.94], np.float32)
    for line in lines:
        ink = _soften(np.kron(glyphs(line.text), np.ones((line.scale, line.scale))), line.scale // 2)
        area = image[line.y : line.y + ink.shape[0], line.x : line.x + ink.shape[1]]
        area += ink[: area.shape[0], : area.shape[1], None] * (line.grey - area)  # cut at the edges of the page
    noisy = image + rng.normal(0, 3, image.shape)
    return np.clip(noisy, 0, 255).round().astype(np.float32)


def _soften(image: np.ndarray, width: int) -> np.ndarray:
    """Mean over a square window of an odd size near `width`, along one axis and then the other."""
    size = 2 * (width // 2) + 1
    kernel = np.ones(size) / size
    for axis in (0, 1):
        image = np.apply_along_axis(np.convolve, axis, image, kernel, mode="same")
    return image.astype(np.float32)
