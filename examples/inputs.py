"""Inputs that look like what the real models were made for, the same on every machine: text, speech, source files, sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from examples import wordpiece
from examples.drawing import Line, page

Arrays = dict[str, np.ndarray]

SENTENCES = (
    "A node that overflows in half precision turns the whole output into infinities.",
    "When one layer exceeds the range of FP16, the result of the network is lost.",
    "The baker opened her shop at six and sold the first loaves of bread.",
    "Fresh rolls were on sale in the bakery early in the morning.",
)
PAGE = [
    Line("INVOICE NO. 20417", 40, 40, 6),
    Line("DATE: 12/03/2024", 40, 110, 4),
    Line("3 X COPPER PIPE 22MM", 40, 190, 4, 60),
    Line("SUBTOTAL        148.50", 40, 250, 4, 45),
    Line("TAX 20%          29.70", 40, 300, 4, 45),
    Line("TOTAL           178.20", 40, 360, 4),
    Line("PLEASE PAY WITHIN 30 DAYS", 60, 450, 3, 90),
    Line("THANK YOU", 230, 530, 7, 20),
]
WINDOW, CONTEXT, RATE = (
    512,
    64,
    16_000,
)  # samples a step of silero-vad, samples kept of the step before, samples a second


def normalise(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] of 0..255 -> [1, 3, H, W] of -1..1, as PP-OCR takes it."""
    return np.ascontiguousarray((image / 127.5 - 1).transpose(2, 0, 1)[None], np.float32)


def text_page(size: int = 640) -> Arrays:
    """An invoice of size x size pixels, for the detector of text."""
    return {"x": normalise(page(size, size, PAGE))}


def text_line(text: str, width: int, height: int = 48) -> Arrays:
    """One line cut out of a page, for the recogniser and the classifier of direction."""
    return {"x": normalise(page(height, width, [Line(text, 10, 6, 5)], seed=1))}


def speech(steps: int) -> np.ndarray:
    """A vowel-like sound, [steps * WINDOW] of float32: pulses of a gliding pitch through three formants, in syllables."""
    time = np.arange(steps * WINDOW) / RATE
    pitch = 120 + 25 * np.sin(2 * np.pi * 1.3 * time)
    phase = np.cumsum(pitch) / RATE
    pulses = (np.diff(np.floor(phase), prepend=0) > 0).astype(np.float64)
    response = np.arange(400) / RATE
    formants = ((700, 60, 1.0), (1220, 90, 0.5), (2600, 150, 0.25))  # Hz, bandwidth in Hz, amplitude
    sound = sum(
        a * np.convolve(pulses, np.exp(-np.pi * b * response) * np.sin(2 * np.pi * f * response))[: time.size]
        for f, b, a in formants
    )
    syllables = np.clip(np.sin(2 * np.pi * 3.5 * time), 0.05, 1)
    breath = np.random.default_rng(0).normal(0, 0.004, time.size)
    voiced = sound * syllables
    return np.asarray(0.3 * voiced / np.abs(voiced).max() + breath, np.float32)


def speech_window(waveform: np.ndarray, step: int) -> np.ndarray:
    """One step of the model and the samples before it, [1, CONTEXT + WINDOW]; silence before the beginning."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), waveform])
    return padded[None, step * WINDOW : (step + 1) * WINDOW + CONTEXT]


def file_bytes(contents: Sequence[bytes], *, block: int = 4096, side: int = 1024, padding: int = 256) -> Arrays:
    """Files as magika reads them: 1024 bytes from each end, white space stripped, int32 [B, 2048], 256 where there are none."""
    rows = []
    for content in contents:
        begin, end = content[:block].lstrip()[:side], content[-block:].rstrip()[-side:]
        rows.append([*begin, *[padding] * (side - len(begin)), *[padding] * (side - len(end)), *end])
    return {"bytes": np.array(rows, np.int32)}


def sentences(vocabulary: str) -> Arrays:
    """Two pairs of sentences of the same meaning, as token ids of `vocabulary` (the text of a vocab.txt)."""
    return wordpiece.encode(SENTENCES, wordpiece.read_vocabulary(vocabulary))
