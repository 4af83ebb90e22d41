"""A check of LZW data in TIFF before they are decoded.

The decoder that tifffile uses follows an unset pointer where the first code after a CLEAR names a string that is not in the
table yet, so damaged bytes could end the process. Every other damage it notices itself.
"""

from __future__ import annotations

import numpy as np

CLEAR, END, FIRST_STRING = 256, 257, 258
LONGEST_RUN = 4096 - FIRST_STRING + 4  # codes that fit the table between two CLEARs, and then some


def _widths() -> np.ndarray:
    """Bits of each code after a CLEAR: the table grows by one string a code from the second on (TIFF 6.0, section 13)."""
    size = FIRST_STRING + np.maximum(0, np.arange(LONGEST_RUN) - 1)
    return 9 + (size >= 511) + (size >= 1023) + (size >= 2047)


WIDTHS = _widths()
STARTS = np.concatenate([[0], np.cumsum(WIDTHS)[:-1]])


def is_sound(data: bytes) -> bool:
    """True where LZW data can be handed to the decoder: they begin with a CLEAR, and after each one stands a single byte."""
    padded = np.frombuffer(data + bytes(4), np.uint8).astype(np.uint32)
    windows = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]  # 24 bits from each byte on
    bits, at, first = 8 * len(data), 0, True
    while True:
        start = at + STARTS
        fits = start + WIDTHS <= bits
        start, width = start[fits], WIDTHS[fits]
        codes = windows[start >> 3] >> (24 - (start & 7) - width) & ((1 << width) - 1)
        if first and (not codes.size or codes[0] != CLEAR):
            return False
        if codes.size and codes[0] >= FIRST_STRING:
            return False
        ends = np.flatnonzero((codes == CLEAR) | (codes == END))
        if not ends.size or codes[ends[0]] == END:
            return True
        at = int(start[ends[0]] + width[ends[0]])
        first = False
