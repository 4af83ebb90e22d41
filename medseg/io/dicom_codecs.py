"""Compressed DICOM pixels through imagecodecs and Pillow, as plugins of pydicom's decoders.

imagecodecs rather than the packages pydicom knows: one wheel holds every codec, 12-bit JPEG among them, its decoders let other
threads run, and it reports a frame that is cut off where others fill the rest with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack
from typing import Any

import imagecodecs
from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder

NAME = "medseg"
START_OF_JPEG_2000 = b"\xff\x4f\xff\x51"
LONGEST_BOXES = 4096  # some writers keep the boxes of a JP2 file in front
MARKER = 0xFF
STARTS_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
END_OF_IMAGE = b"\xff\xd9"  # JPEG, JPEG-LS and JPEG 2000 alike

DECODERS: dict[str, Callable[..., Any]] = {
    uid.JPEGExtended12Bit: imagecodecs.jpeg8_decode,
    uid.JPEGLossless: imagecodecs.jpeg8_decode,
    uid.JPEGLosslessSV1: imagecodecs.jpeg8_decode,
    uid.JPEGLSLossless: imagecodecs.jpegls_decode,
    uid.JPEGLSNearLossless: imagecodecs.jpegls_decode,
    uid.JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    uid.JPEG2000: imagecodecs.jpeg2k_decode,
    uid.HTJ2KLossless: imagecodecs.jpeg2k_decode,
    uid.HTJ2KLosslessRPCL: imagecodecs.jpeg2k_decode,
    uid.HTJ2K: imagecodecs.jpeg2k_decode,
}
# Pillow leaves the colours of a JPEG as they are stored, which pydicom expects; RLE is quick in pydicom itself.
PLUGINS: dict[str, str] = {uid.JPEGBaseline8Bit: "pillow", uid.RLELossless: "pydicom"} | dict.fromkeys(DECODERS, NAME)
DECODER_DEPENDENCIES = dict.fromkeys(DECODERS, ("imagecodecs",))


def is_available(syntax: str) -> bool:
    """True for the transfer syntaxes of DECODERS; pydicom asks."""
    return syntax in DECODERS


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """The samples of one compressed frame, pixel by pixel. Raises: what imagecodecs raises, ValueError for a frame cut off."""
    if not source.rstrip(b"\0").endswith(END_OF_IMAGE):
        raise ValueError("no end of image")
    if _stated_size(source) != (runner.rows, runner.columns):  # asked first: a decoder would find room for whatever is stated
        raise ValueError("another size than the header states")
    syntax = runner.transfer_syntax
    frame = DECODERS[syntax](source)
    shape = (runner.rows, runner.columns) + ((runner.samples_per_pixel,) if runner.samples_per_pixel > 1 else ())
    if frame.shape != shape:
        raise ValueError("another number of samples than the header states")
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
        if str(runner.photometric_interpretation) in ("YBR_ICT", "YBR_RCT"):
            runner.set_option("photometric_interpretation", "RGB")
    return bytes(frame.tobytes())


def _stated_size(source: bytes) -> tuple[int, int] | None:
    """The rows and columns that a codestream of JPEG, JPEG-LS or JPEG 2000 states."""
    if (start := source.find(START_OF_JPEG_2000, 0, LONGEST_BOXES)) >= 0:
        right, bottom, left, top = unpack(">IIII", source[start + 8 : start + 24])
        return bottom - top, right - left
    place = 2
    while place + 9 <= len(source) and source[place] == MARKER:
        if source[place + 1] in STARTS_OF_FRAME:
            rows, columns = unpack(">HH", source[place + 5 : place + 9])
            return rows, columns
        place += 2 + int.from_bytes(source[place + 2 : place + 4])
    return None


def can_decode(syntax: str) -> bool:
    """True for a transfer syntax that is uncompressed or has a decoder here."""
    try:
        return not get_decoder(syntax).is_encapsulated or syntax in PLUGINS
    except NotImplementedError:
        return False


def plugin(syntax: str, bits_stored: int) -> str:
    """The plugin of pydicom that decodes frames of a transfer syntax; empty for uncompressed ones."""
    if syntax == uid.JPEGExtended12Bit and bits_stored == 8:
        return PLUGINS[uid.JPEGBaseline8Bit]
    return PLUGINS.get(syntax, "")


for _syntax in DECODERS:
    get_decoder(_syntax).add_plugin(NAME, (__name__, decode_frame.__name__))
