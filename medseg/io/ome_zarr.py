"""OME-Zarr by zarr: pictures of NGFF 0.1 to 0.4 (Zarr v2) and 0.5 (Zarr v3), read at full resolution, and label images.

A Zarr is a folder with a file a chunk. A chunk without a file holds the fill value: that is how writers save space, and what a
copy broken off looks like too. `_refuse_holes` tells the two apart where the picture itself does; `warnings` counts them.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import OutputError, UnreadableError
from medseg.core.files import files_below
from medseg.core.folders import atomic_folder
from medseg.core.grid import Grid
from medseg.core.wording import one_line
from medseg.io.picture import MILLIMETRES, Array, Picture, grid_of

VERSIONS = ("0.1", "0.2", "0.3", "0.4", "0.5")
OLD_AXES = "tczyx"  # NGFF 0.1 and 0.2 name no axes: they are always these
OLD_TYPES = {"t": "time", "c": "channel"}
# The further lengths among the units that the specification lists.
MILLIMETRES_OF_UNIT = MILLIMETRES | {"decimeter": 100.0, "picometer": 1e-9, "angstrom": 1e-7}
BLOCK_BYTES = 2**26
LABEL_CHUNK = {"z": 32, "y": 512, "x": 512}
CHUNK_FILE = re.compile(r"(?:c[./])?(\d+(?:[./]\d+)*)")
BLOSC, BLOSC_HEADER = ("Blosc", "BloscCodec"), 16

Region = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class _Image:
    """A multiscale image: its metadata, and the zarr array of its first, full-resolution level.

    Args:
        path: as the user gave it, for messages.
        folder: of the array.
        version: of NGFF, by the form of the metadata where they do not say.
        axes: one a dimension of the array, each with a name and perhaps a type and a unit.
    """

    path: Path
    folder: Path
    version: str
    multiscale: dict[str, Any]
    axes: list[dict[str, Any]]
    array: Any

    @property
    def letters(self) -> list[str]:
        """What each axis is: t, c, z, y, x, or its own name."""
        return [{"time": "t", "channel": "c"}.get(a.get("type") or "", str(a["name"]).lower()) for a in self.axes]

    @property
    def length(self) -> dict[str, int]:
        return dict(zip(self.letters, self.array.shape, strict=True))

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The transformations from voxels to positions, in the order in which they apply."""
        key = "coordinateTransformations"
        return [*(self.multiscale["datasets"][0].get(key) or []), *(self.multiscale.get(key) or [])]

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The voxels that one file holds: a chunk, or a shard of many."""
        return tuple(self.array.shards or self.array.chunks)

    @property
    def files(self) -> int:
        """How many files the whole array is."""
        return math.prod(math.ceil(n / c) for n, c in zip(self.array.shape, self.file_shape, strict=True))


def read(path: Path, as_labels: bool) -> Picture:
    """The picture as (C, X, Y, Z) of the array's own type; beside it a block of some chunks is in memory.

    Raises: UnreadableError for no or several pictures, a time series, damaged chunks, and chunks that are lost.
    """
    image = _opened(path)
    grid = _grid(image)
    stored = _stored(image)
    if not stored and not as_labels:  # a label map may well be empty
        raise UnreadableError(f"{path} holds none of the {image.files} chunk files of its picture; copy it again.")
    kept = [letter for letter in "cxyz" if letter in image.letters]
    array = np.empty([image.length[letter] for letter in kept], np.dtype(image.array.dtype).newbyteorder("="))
    for region in _blocks(image):
        array[_turned(region, image, kept)] = _voxels(image, region, kept)
    if len(stored) < image.files:
        _refuse_holes(image, array, kept, stored)
    array = array.view(np.uint8) if array.dtype == bool else array
    return Picture(array.reshape(-1, *grid.shape), grid)


def read_grid(path: Path) -> Grid:
    """The grid that axes, units and transformations state. Raises: UnreadableError, and what zarr raises."""
    return _grid(_opened(path))


def warnings(path: Path) -> list[str]:
    """Sentences for a scale without a length unit, and for chunks without a file."""
    image = _opened(path)
    found = []
    if not _grid(image).physical and any(
        s != 1 for s, letter in zip(_placed(image)[0], image.letters, strict=True) if letter in "xyz"
    ):
        units = ", ".join(f"{a['name']}: {a.get('unit') or 'none'}" for a in _spatial(image))
        found.append(
            f"{path} states a scale but not the length unit of each axis ({units}); "
            "lengths are counted in pixels unless data.spacing_mm is set."
        )
    if lost := image.files - len(_stored(image)):
        fill = image.array.fill_value or 0
        found.append(
            f"{path}: {lost} of {image.files} chunks have no file and read as {fill}; "
            "if the picture is not empty there, copy it again."
        )
    return found


def write(labels: Array, like: Path, target: Path) -> None:
    """Write labels (X, Y, Z) uint8 or uint16 as an NGFF label image with the axes, units and transformations of `like`.

    It is of the scan's NGFF version (0.4 for older ones), and has as many levels as the scan, each half as wide and high as the
    one before. Equal labels give equal files. The folder is read back and compared before it takes its name, whole or not at all.

    Raises: UnreadableError where `like` cannot be read, OutputError where the folder cannot be written.
    """
    image = _opened(like)
    if Path(target).resolve() in (Path(like).resolve(), *Path(like).resolve().parents):
        raise OutputError(f"{target} holds the scan itself; choose another output.")
    with atomic_folder(target) as temporary:
        _write(labels, image, temporary)
        written, grid = read(temporary, True), _grid(image)
        same_place = np.array_equal(written.grid.affine, grid.affine) and written.grid.physical == grid.physical
        same_shape = written.array.shape[1:] == labels.shape
        if not (same_place and same_shape and all(map(np.array_equal, written.array[0], labels))):
            raise OutputError(f"{target}: a label map did not read back as it was written; check the disk.")


def _opened(path: Path) -> _Image:
    """The one picture of a folder. Raises: UnreadableError where there is none or are several, and for axes of no picture."""
    import zarr  # takes 0.2 s, and most runs meet no OME-Zarr

    group = _picture(Path(path))
    attributes = _attributes(group)
    multiscales = attributes["multiscales"]
    if len({m["datasets"][0]["path"] for m in multiscales}) > 1:
        raise UnreadableError(f"{path} holds {len(multiscales)} multiscale images in one group; save the one to segment alone.")
    multiscale = multiscales[0]
    by_form = "0.5" if (group / "zarr.json").is_file() else "0.4"
    version = str(attributes.get("version") or multiscale.get("version") or by_form)
    if version not in VERSIONS:
        raise UnreadableError(f"{path} is of NGFF version {version}, which is not supported; save it as 0.4 or 0.5.")
    folder = group / multiscale["datasets"][0]["path"]
    array = zarr.open_array(str(folder), mode="r", zarr_format=3 if (folder / "zarr.json").is_file() else 2)
    axes = multiscale.get("axes", OLD_AXES)  # before 0.4 they are only letters
    axes = [{"name": a, "type": OLD_TYPES.get(a, "space")} if isinstance(a, str) else a for a in axes]
    image = _Image(Path(path), folder, version, multiscale, axes, array)
    _check(image)
    return image


def _check(image: _Image) -> None:
    letters, shape, kind = image.letters, image.array.shape, np.dtype(image.array.dtype).kind
    strange = [letter for letter, n in zip(letters, shape, strict=False) if n > 1 and letter not in "czyx"]
    if len(letters) != len(shape) or len(set(letters)) != len(letters) or strange or not {"x", "y"} <= set(letters):
        named = ", ".join(f"{letter} {n}" for letter, n in itertools.zip_longest(letters, shape, fillvalue="?"))
        what = "a time series" if strange == ["t"] else f"a {len(shape)}D picture"
        raise UnreadableError(
            f"{image.path} is {what} (axes {named}); save the picture or the z-stack to segment as an OME-Zarr of its own."
        )
    if kind not in "uifb":
        raise UnreadableError(f"{image.path} holds {image.array.dtype} pixels; save it as integers or real numbers.")


def _picture(path: Path) -> Path:
    """The group of the one picture in a folder, which may be a plate, a well, or what bioformats2raw makes of a file."""
    found = _pictures(path)
    if not found:
        raise UnreadableError(
            f"{path} holds no OME-Zarr image (no `multiscales` in its metadata); convert the picture to OME-Zarr."
        )
    if len(found) > 1:
        names = ", ".join(group.relative_to(path).as_posix() for group in found[:3])
        raise UnreadableError(
            f"{path} holds {len(found)} pictures ({names}{', ...' * (len(found) > 3)}); "
            "give one of them, copied or linked as a folder named *.zarr."
        )
    return found[0]


def _pictures(group: Path) -> list[Path]:
    attributes = _attributes(group)
    if "multiscales" in attributes:
        return [group]
    inner: Sequence[str] = ()
    if "plate" in attributes:
        inner = [well["path"] for well in attributes["plate"]["wells"]]
    elif "well" in attributes:
        inner = [field["path"] for field in attributes["well"]["images"]]
    elif "bioformats2raw.layout" in attributes:
        numbered = sorted((p.name for p in group.iterdir() if p.name.isdigit()), key=int)
        inner = _attributes(group / "OME").get("series") or numbered
    return [picture for name in inner for picture in _pictures(group / name)]


def _attributes(group: Path) -> dict[str, Any]:
    """The OME metadata of a group; none where it has no attributes."""
    if (group / "zarr.json").is_file():
        attributes = json.loads((group / "zarr.json").read_bytes()).get("attributes", {})
        return attributes.get("ome", attributes)
    return json.loads((group / ".zattrs").read_bytes()) if (group / ".zattrs").is_file() else {}


def _grid(image: _Image) -> Grid:
    """Without a unit the specification leaves open what a scale means, so such a picture has pixels, not millimetres."""
    shape = tuple(image.length.get(letter, 1) for letter in "xyz")
    scale, shift = _placed(image)
    factor = {
        a: MILLIMETRES_OF_UNIT.get(str(axis.get("unit")).lower()) for a, axis in zip(image.letters, image.axes, strict=True)
    }
    needed = "xyz" if shape[2] > 1 else "xy"
    if not any(step.get("type") == "scale" for step in image.steps) or not all(factor[a] for a in needed):
        return Grid.pixels(shape)
    affine = np.eye(4)
    for axis, letter in enumerate("xyz"):
        if mm := factor.get(letter):
            place = image.letters.index(letter)
            affine[axis, 3] = shift[place] * mm
            # One slice has no distance to a next one; 1 mm makes its volume in cubic mm its area in square mm.
            affine[axis, axis] = scale[place] * mm if letter in needed else 1.0
    return grid_of(shape, affine, image.path)


def _placed(image: _Image) -> tuple[Array, Array]:
    """Scale and position of the first voxel along each axis, in its unit. Raises: UnreadableError for other transformations."""
    scale, shift = np.ones(len(image.axes)), np.zeros(len(image.axes))
    for step in image.steps:
        kind = step.get("type")
        if kind == "identity":
            continue
        vector = np.asarray(step.get(str(kind), ()), np.float64)
        if kind not in ("scale", "translation") or vector.shape != scale.shape:
            raise UnreadableError(
                f"{image.path}: its transformation {json.dumps(step)[:80]} is not supported; save it with a scale an axis."
            )
        scale, shift = (scale * vector, shift * vector) if kind == "scale" else (scale, shift + vector)
    return scale, shift


def _spatial(image: _Image) -> list[dict[str, Any]]:
    return [axis for axis, letter in zip(image.axes, image.letters, strict=True) if letter in "zyx"]


def _stored(image: _Image) -> set[tuple[int, ...]]:
    """The places of the chunk files that are there. Raises: UnreadableError for short ones that zarr would be content with."""
    counts = [math.ceil(n / c) for n, c in zip(image.array.shape, image.file_shape, strict=True)]
    blosc = not image.array.shards and type(next(reversed(image.array.compressors), None)).__name__ in BLOSC
    stored = set()
    for path in files_below(image.folder):
        if named := CHUNK_FILE.fullmatch(path.relative_to(image.folder).as_posix()):
            place = tuple(int(number) for number in re.split("[./]", named[1]))
            if len(place) == len(counts) and all(i < n for i, n in zip(place, counts, strict=True)):
                stored.add(place)
                size = path.stat().st_size
                if not size or (blosc and size < _blosc_bytes(path)):
                    raise UnreadableError(f"{path} is truncated; replace it with an intact copy.")
    return stored


def _blosc_bytes(path: Path) -> int:
    """The length that a Blosc chunk states of itself."""
    with open(path, "rb") as file:
        header = file.read(BLOSC_HEADER)
    return max(BLOSC_HEADER, int.from_bytes(header[12:], "little"))


def _blocks(image: _Image) -> Iterator[Region]:
    """The array in regions of whole chunks, many a region where chunks are small. Slices go first: in memory Z lies closest."""
    step = list(image.array.chunks)
    room = BLOCK_BYTES // np.dtype(image.array.dtype).itemsize
    for axis in (image.letters.index(letter) for letter in "zyx" if letter in image.letters):
        while step[axis] < image.array.shape[axis] and 2 * math.prod(step) <= room:
            step[axis] *= 2
    starts = (range(0, n, s) for n, s in zip(image.array.shape, step, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(i, min(i + s, n)) for i, s, n in zip(corner, step, image.array.shape, strict=True))


def _turned(region: Region, image: _Image, kept: list[str]) -> Region:
    return tuple(region[image.letters.index(letter)] for letter in kept)


def _voxels(image: _Image, region: Region, kept: list[str]) -> Array:
    """The voxels of a region, with the axes `kept` in that order. Raises: UnreadableError where a chunk is damaged."""
    inside = [letter for letter in image.letters if letter in kept]
    selection = tuple(s if letter in kept else 0 for s, letter in zip(region, image.letters, strict=True))
    try:
        voxels = np.asarray(image.array[selection])
    except MemoryError:
        raise
    except Exception as error:  # every decoder has its own
        place = ", ".join(f"{letter} {s.start} to {s.stop}" for letter, s in zip(image.letters, region, strict=True))
        reason = one_line(error, 100).rstrip(" .")
        raise UnreadableError(
            f"{image.path} is damaged in the chunks at {place} ({reason}); replace it with an intact copy."
        ) from error
    return voxels.transpose([inside.index(letter) for letter in kept])


def _refuse_holes(image: _Image, array: Array, kept: list[str], stored: set[tuple[int, ...]]) -> None:
    """Raise UnreadableError for missing chunks beside a stored one that holds nothing but the fill value.

    A writer that stored that one does not leave out empty chunks, so the missing ones are lost.
    """
    fill = image.array.fill_value or 0
    for place in stored:
        region = tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, image.file_shape, strict=True))
        voxels = array[_turned(region, image, kept)]
        if voxels.flat[0] == fill and (voxels == fill).all():
            lost = image.files - len(stored)
            raise UnreadableError(
                f"{image.path}: {lost} of {image.files} chunk files of its picture are lost; "
                "copy it again, or save it anew where nothing was to be there."
            )


def _write(labels: Array, image: _Image, folder: Path) -> None:
    import zarr
    from zarr.codecs import ZstdCodec

    letters = [letter for letter in image.letters if letter in "zyx"]
    array = (labels if "z" in letters else labels[..., 0]).transpose(["xyz".index(letter) for letter in letters])
    halves = [2 if letter in "yx" else 1 for letter in letters]
    levels = len(image.multiscale["datasets"])
    attributes = _label_attributes(image, [[half**level for half in halves] for level in range(levels)])
    options: dict[str, Any] = {"fill_value": 0, "config": {"write_empty_chunks": True}}  # a lost chunk can then be told
    if image.version == "0.5":
        options["compressors"] = ZstdCodec(level=3, checksum=True)
        options["dimension_names"] = [axis["name"] for axis in _spatial(image)]
    else:
        options["compressors"] = {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1}
        options["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    group = zarr.create_group(str(folder), zarr_format=3 if image.version == "0.5" else 2, attributes=attributes)
    for level in range(levels):
        chunks = tuple(min(LABEL_CHUNK[letter], n) for letter, n in zip(letters, array.shape, strict=True))
        group.create_array(str(level), shape=array.shape, dtype=array.dtype, chunks=chunks, **options)[...] = array
        array = array[tuple(slice(None, None, half) for half in halves)]  # the nearest voxel: labels cannot be averaged


def _label_attributes(image: _Image, factors: list[list[int]]) -> dict[str, Any]:
    """The metadata of a label image; `factors` say how much larger the voxels of each level are along each axis of space."""
    stated = any(step.get("type") == "scale" for step in image.steps)
    axes = [{k: a[k] for k in ("name", "type", "unit") if k in a and (stated or k != "unit")} for a in _spatial(image)]
    first = _steps_in_space(image, image.multiscale["datasets"][0])
    if not any(step["type"] == "scale" for step in first):
        first = [{"type": "scale", "scale": [1.0] * len(axes)}, *first]
    levels = []
    for level, factor in enumerate(factors):
        # The first voxel of every level is the same one, so a translation holds for all of them.
        steps = [
            s if s["type"] != "scale" else {**s, "scale": [v * f for v, f in zip(s["scale"], factor, strict=True)]} for s in first
        ]
        levels.append({"path": str(level), "coordinateTransformations": steps})
    version = image.version if image.version == "0.5" else "0.4"
    multiscale = {"name": "labels", "axes": axes, "datasets": levels}
    if outer := _steps_in_space(image, image.multiscale):
        multiscale["coordinateTransformations"] = outer
    if version == "0.5":
        return {"ome": {"version": version, "multiscales": [multiscale], "image-label": {}}}
    return {"multiscales": [{"version": version, **multiscale}], "image-label": {"version": version}}


def _steps_in_space(image: _Image, owner: dict[str, Any]) -> list[dict[str, Any]]:
    """The transformations of a level or of all levels, for the axes of space only, number for number as they stand."""
    space = [i for i, letter in enumerate(image.letters) if letter in "zyx"]
    steps = [step for step in owner.get("coordinateTransformations") or [] if step["type"] != "identity"]
    return [{"type": s["type"], s["type"]: [s[s["type"]][i] for i in space]} for s in steps]
