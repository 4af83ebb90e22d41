"""TIFF by tifffile: pictures, multi-page stacks, ImageJ and OME files.

Resolution tags alone are print sizes and say nothing; a physical size is taken from an ImageJ unit or from OME PhysicalSize.
"""

from __future__ import annotations

import io
import logging
import math
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from medseg.core.errors import UnreadableError
from medseg.core.grid import Grid
from medseg.io import lzw
from medseg.io.picture import MILLIMETRES, Array, Picture, grid_of

STACK_AXES = "ZIQ"  # Z, and tifffile's letters for pages that do not say what they are
CHANNEL_AXES = "SC"
OME_NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
OME_SIZES = ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ")
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6  # photometric interpretations
NO_UNIT = 1
LZW = 5  # values of the tag Compression, and how far the plain ones and deflate can shrink voxels at best
MOST_EXPANSION = 2000
BOUNDED_COMPRESSIONS = (1, LZW, 8, 32946, 32773)
OME_MILLIMETRES = MILLIMETRES | {"dm": 100.0, "å": 1e-7}  # further units of OME that a microscope may state


def read(path: Path, as_labels: bool) -> Picture:
    """The picture as (C, X, Y, Z); labels with a palette give its indices. Raises: what tifffile raises."""
    with _opened(path) as (file, series):
        grid = _grid(file, series, path)
        page = series.keyframe
        _check_whole(series, path)
        array = series.asarray()
        axes = series.axes
        if page.photometric == PALETTE and not as_labels and not file.is_imagej:
            # ImageJ stores the colours that a grey picture is looked at with; elsewhere a palette holds the picture's own.
            array, axes = (page.colormap[:, array] >> 8).astype(np.uint8), "S" + axes
    array, axes = _without_alpha(array, axes, page)
    order = [
        next((i for i, a in enumerate(axes) if a in group and array.shape[i] > 1), None)
        for group in (CHANNEL_AXES, "X", "Y", STACK_AXES)
    ]
    order[1], order[2] = axes.index("X"), axes.index("Y")
    kept = [i for i in order if i is not None]
    single = tuple(i for i in range(array.ndim) if i not in kept)
    array = array.transpose(*kept, *single)
    array = array.view(np.uint8) if array.dtype == bool else array
    return Picture(array.reshape(-1, *grid.shape), grid)


def read_grid(path: Path) -> Grid:
    """The grid that the tags and the ImageJ or OME description state."""
    with _opened(path) as (file, series):
        return _grid(file, series, path)


def warnings(path: Path) -> list[str]:
    """Sentences for a stack that states the size of its pixels and not the distance of its slices, and for tiles without data."""
    with _opened(path) as (file, series):
        sizes, grid = _sizes_mm(file), _grid(file, series, path)
        counts = [count for page in filter(None, series.pages) for count in page.databytecounts]
    found = []
    if sizes is not None and not grid.physical:
        found.append(
            f"{path} states a pixel size but no distance between slices; "
            "lengths are counted in pixels unless data.spacing_mm is set."
        )
    if empty := counts.count(0):
        found.append(f"{path}: {empty} of {len(counts)} tiles or strips hold no data and read as empty; check the picture there.")
    return found


def set_files(path: Path) -> list[Path]:
    """The files that hold the planes of an OME-TIFF, the one with the first plane first; only `path` where it stands alone.

    Each file of a set gives the whole picture, so a set is one scan, and its content is that of all its files.

    Raises: what tifffile raises.
    """
    path = Path(path)
    with tifffile.TiffFile(path) as file:
        metadata = file.ome_metadata if file.is_ome else None
    if not metadata or "FileName" not in metadata:
        return [path]
    root = ElementTree.fromstring(metadata)
    planes = [e for e in root.iter() if e.tag.rpartition("}")[2] == "UUID" and e.get("FileName")]
    names = dict.fromkeys(path.name if e.text == root.get("UUID") else str(e.get("FileName")) for e in planes)
    files = [path.parent / name for name in names if (path.parent / name).is_file()]
    return files if path in files else [path]


def encode(labels: Array, like: Path) -> bytes:
    """A zlib TIFF of `labels`, one page a slice, that states the physical size as `like` does."""
    with _opened(like) as (file, _):
        options = _described(file, labels)
    pages = np.ascontiguousarray(labels.transpose(2, 1, 0))
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pages if len(pages) > 1 else pages[0], photometric="minisblack", compression="zlib", **options)
    return buffer.getvalue()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The file and its one series of pictures. Raises: UnreadableError for what tifffile logs as an error and passes over."""
    with _listening() as complaints, tifffile.TiffFile(path) as file:
        if file.is_ome and "BinaryOnly " in (file.ome_metadata or ""):
            raise UnreadableError(
                f"{path} keeps its metadata in another file, which is not read; save it as an OME-TIFF of its own."
            )
        if len(file.series) != 1:
            raise UnreadableError(
                f"{path} holds {len(file.series)} pictures of different sizes or kinds; save the one to segment alone."
            )
        series = file.series[0]
        _check_axes(series, path)
        if series.keyframe.photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, YCBCR):
            raise UnreadableError(f"{path}: its colour space is not supported; save it as grey or RGB.")
        if series.dtype is None or series.dtype.kind not in "uifb":
            raise UnreadableError(f"{path} holds {series.dtype} pixels; save it as integers or real numbers.")
        yield file, series
        if complaints:
            raise UnreadableError(f"{path} is damaged ({complaints[0]}); replace it with an intact copy.")


@contextmanager
def _listening() -> Iterator[list[str]]:
    complaints: list[str] = []
    thread = threading.get_ident()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread and record.levelno >= logging.ERROR:
                complaints.append(" ".join(record.getMessage().split()))

    logger, listener = logging.getLogger("tifffile"), Listener()
    logger.addHandler(listener)
    try:
        yield complaints
    finally:
        logger.removeHandler(listener)


def _check_axes(series: Any, path: Path) -> None:
    axes = [(letter, n) for letter, n in zip(series.axes, series.shape, strict=True) if n > 1 and letter not in "XY"]
    stacks = [letter for letter, _ in axes if letter in STACK_AXES]
    channels = [letter for letter, _ in axes if letter in CHANNEL_AXES]
    strange = [letter for letter, _ in axes if letter not in STACK_AXES + CHANNEL_AXES]
    if "X" not in series.axes or "Y" not in series.axes or strange or len(stacks) > 1 or len(channels) > 1:
        shape = ", ".join(f"{letter} {n}" for letter, n in zip(series.axes, series.shape, strict=True))
        what = "a time series" if "T" in strange else f"a {2 + len(axes)}D file"
        raise UnreadableError(
            f"{path} is {what} (axes {shape}); save the picture or the z-stack to segment as a file of its own."
        )


def _check_whole(series: Any, path: Path) -> None:
    """Raise UnreadableError for planes and pixels that are not there, and for LZW data that the decoder would choke on."""
    pages = list(series.pages)
    if missing := sum(page is None for page in pages):
        raise UnreadableError(
            f"{path}: {missing} of the {len(pages)} planes that its metadata state are missing; "
            "bring the other files of its set, or save it again."
        )
    if series.keyframe.compression in BOUNDED_COMPRESSIONS and series.nbytes > MOST_EXPANSION * path.stat().st_size:
        shape = " x ".join(map(str, series.shape))
        raise UnreadableError(f"{path} states {shape} pixels, which its size cannot hold; replace it with an intact copy.")
    for page in pages:
        file = page.parent.filehandle  # perhaps of another file of the set, and closed
        segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        if any(start + count > file.size for start, count in segments):  # some decoders are content with less
            raise UnreadableError(f"{path} is truncated: pixels lie beyond its end; replace it with an intact copy.")
        if series.keyframe.compression == LZW and not _is_sound_lzw(Path(file.path), segments):
            raise UnreadableError(f"{path} is damaged in its LZW data; replace it with an intact copy.")


def _is_sound_lzw(path: Path, segments: list[tuple[int, int]]) -> bool:
    with open(path, "rb") as file:
        for start, count in segments:
            file.seek(start)
            if count and not lzw.is_sound(file.read(count)):
                return False
    return True


def _without_alpha(array: Array, axes: str, page: Any) -> tuple[Array, str]:
    if "S" in axes:
        axis = axes.index("S")
        colours = array.shape[axis] - len(page.extrasamples)
        if page.photometric in (RGB, YCBCR):
            colours = 3
        array = array[(slice(None),) * axis + (slice(max(1, colours)),)]
    return array, axes


def _grid(file: Any, series: Any, path: Path) -> Grid:
    length = dict(zip(series.axes, series.shape, strict=True))
    slices = max((length[a] for a in STACK_AXES if a in length), default=1)
    shape = (length["X"], length["Y"], slices)
    sizes = _sizes_mm(file)
    if sizes is None or (slices > 1 and sizes[2] is None):
        return grid_of(shape, np.eye(4), path, physical=False)
    # One slice has no distance to a next one; 1 mm makes its volume in cubic mm its area in square mm.
    return grid_of(shape, np.diag([sizes[0], sizes[1], (sizes[2] if slices > 1 else None) or 1.0, 1.0]), path)


def _sizes_mm(file: Any) -> tuple[float, float, float | None] | None:
    """Pixel width, pixel height and distance of slices in mm as the file states them."""
    if file.is_ome and file.ome_metadata:
        sizes = [_ome_size(_ome_pixels(file), name) for name in OME_SIZES]
    elif file.is_imagej and file.imagej_metadata:
        sizes = _imagej_sizes(file)
    else:
        return None
    x, y, z = sizes
    return None if x is None or y is None else (x, y, z)


def _ome_pixels(file: Any) -> dict[str, str]:
    root = ElementTree.fromstring(file.ome_metadata)
    pixels = next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    return {} if pixels is None else dict(pixels.attrib)


def _ome_size(pixels: dict[str, str], name: str) -> float | None:
    factor = OME_MILLIMETRES.get(pixels.get(name + "Unit", "um").lower())
    return _positive(float(pixels[name]) * factor) if name in pixels and factor else None


def _imagej_sizes(file: Any) -> list[float | None]:
    metadata, tags = file.imagej_metadata, file.pages[0].tags
    factor = MILLIMETRES.get(str(metadata.get("unit", "")).lower())
    if factor is None:
        return [None, None, None]
    sizes: list[float | None] = []
    for name in ("XResolution", "YResolution"):
        count, units = tags[name].value if name in tags else (0, 1)  # pixels in so many units
        sizes.append(_positive(units / count * factor) if count else None)
    spacing = metadata.get("spacing")
    return [*sizes, _positive(float(spacing) * factor) if isinstance(spacing, int | float) else None]


def _positive(size: float) -> float | None:
    return size if math.isfinite(size) and size > 0 else None


def _described(file: Any, labels: Array) -> dict[str, Any]:
    """The arguments of imwrite that state axes and physical size as `file` does."""
    slices = labels.shape[2]
    if file.is_ome and file.ome_metadata:
        return {"description": _ome_description(_ome_pixels(file), labels), "metadata": None, "software": False}
    if file.is_imagej and file.imagej_metadata:
        tags = file.pages[0].tags
        kept = [line for line in file.pages[0].description.splitlines() if line.startswith(("unit=", "spacing="))]
        text = "\n".join(["ImageJ=1.53t", f"images={slices}", f"slices={slices}", "loop=false", *kept, ""]).encode()
        options: dict[str, Any] = {"description": text, "metadata": None, "software": False}
        if "XResolution" in tags and "YResolution" in tags:
            options |= {"resolution": (tags["XResolution"].value, tags["YResolution"].value), "resolutionunit": NO_UNIT}
        return options
    return {"metadata": {"axes": "ZYX" if slices > 1 else "YX"}, "software": False}


def _ome_description(pixels: dict[str, str], labels: Array) -> bytes:
    # Written here: tifffile would put a random identifier in it, and equal labels should give equal files.
    x, y, z = labels.shape
    root = ElementTree.Element("OME", xmlns=OME_NAMESPACE)
    image = ElementTree.SubElement(root, "Image", ID="Image:0")
    sizes = {key: value for key, value in pixels.items() if key.startswith("PhysicalSize")}
    shape = {"SizeX": str(x), "SizeY": str(y), "SizeC": "1", "SizeZ": str(z), "SizeT": "1"}
    kind = {"ID": "Pixels:0", "DimensionOrder": "XYZCT", "Type": labels.dtype.name}
    element = ElementTree.SubElement(image, "Pixels", {**kind, **shape, **sizes})
    ElementTree.SubElement(element, "Channel", ID="Channel:0:0", SamplesPerPixel="1")
    ElementTree.SubElement(element, "TiffData", IFD="0", PlaneCount=str(z))
    return b'<?xml version="1.0" encoding="UTF-8"?>' + ElementTree.tostring(root)
