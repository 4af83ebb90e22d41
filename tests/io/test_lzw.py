"""The check of LZW data: what an encoder writes is sound, what the decoder would follow astray is not."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from medseg.core.errors import UnreadableError
from medseg.io.formats import read_volume
from medseg.io.lzw import is_sound


def packed(*codes: int) -> bytes:
    """Nine-bit codes one after the other."""
    bits = "".join(f"{code:09b}" for code in codes)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


@pytest.mark.parametrize("spread", [1, 3, 20, 256])
@pytest.mark.parametrize("size", [0, 1, 2, 300, 5000, 200_000])
def test_what_an_encoder_writes_is_sound(spread: int, size: int) -> None:
    data = np.random.default_rng(size).integers(0, spread, size, np.uint8).tobytes()
    if size:
        assert is_sound(imagecodecs.lzw_encode(data))


def test_a_string_that_does_not_exist_yet() -> None:
    assert is_sound(packed(256, 7, 258, 257)) and is_sound(packed(256, 256, 7, 257))
    assert not is_sound(packed(7, 8, 257))
    assert not is_sound(packed(256, 300, 257))
    assert not is_sound(packed(256, 7, 258, 256, 258, 257))
    assert not is_sound(b"") and not is_sound(b"\x80")


def test_the_check_follows_the_growing_codes() -> None:
    data = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    encoded = imagecodecs.lzw_encode(data)
    # The second CLEAR stands after some four thousand codes of 9 to 12 bits; the code after it is broken there.
    bits = "".join(f"{byte:08b}" for byte in encoded)
    place = next(
        i for i in range(3800 * 9, len(bits)) if bits[i : i + 12] == f"{256:012b}" and not is_sound(_broken(bits, i + 12))
    )
    assert 3700 * 9 < place < 4100 * 12


def _broken(bits: str, place: int) -> bytes:
    damaged = bits[:place] + f"{400:09b}" + bits[place + 9 :]
    return int(damaged, 2).to_bytes(len(damaged) // 8, "big")


def test_such_a_tiff_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((30, 30), np.uint8), compression="lzw", metadata=None)
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[start : start + 4] = packed(256, 300, 300)[:4]
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=r"a\.tif is damaged in its LZW data"):
        read_volume(path)
