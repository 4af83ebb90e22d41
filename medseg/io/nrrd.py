"""NRRD, .nrrd and .nhdr (https://teem.sourceforge.net/nrrd/format.html): fields parsed by pynrrd, voxels by their size."""

from __future__ import annotations

import bz2
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from medseg.core.errors import UnreadableError
from medseg.core.grid import Grid
from medseg.io.payload import Buffer, gunzip, gzip_bytes, open_bytes, text_voxels, voxels
from medseg.io.picture import LPS_TO_RAS, Array, Picture, colour_channels, grid_of, millimetres

LONGEST_HEADER = 1 << 20
# Any other space, or none, is taken as LPS, as ITK and Slicer do.
TO_RAS = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
}  # fmt: skip
DTYPES = {
    "i1": "signed char|int8|int8_t", "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t", "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float", "f8": "double",
}  # fmt: skip
NUMPY_TYPE = {name: code for code, names in DTYPES.items() for name in names.split("|")}
UNPACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gunzip, "gz": gunzip, "bzip2": bz2.decompress, "bz2": bz2.decompress}
WHOLE_FIELDS = ("space", "space dimension", "space origin", "space units")
AXIS_FIELDS = ("space directions", "spacings", "axis mins", "axismins", "centers", "centerings", "units")


@dataclass(frozen=True, eq=False)
class _Header:
    """Parsed fields, the text of each, where the voxels start, and which axes are space."""

    path: Path
    fields: dict[str, Any]
    texts: dict[str, str]
    end: int
    spatial: list[int]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.fields["sizes"])

    @property
    def data_file(self) -> Path | None:
        name = self.fields.get("data file", self.fields.get("datafile"))
        return None if name is None else self.path.parent / name

    def per_axis(self, *names: str) -> list[Any] | None:
        """The values of a field that has one for each axis, spatial axes only."""
        for name in names:
            if name in self.fields:
                return [self.fields[name][axis] for axis in self.spatial]
        return None


def read(path: Path, as_labels: bool) -> Picture:
    """The scan or label map in an NRRD file. Raises: UnreadableError and what pynrrd and the decompressors raise."""
    header = _read_header(path)
    grid = _grid(header)
    array = _voxels(header)
    # Axes that are not space come first, as channels; of several at most one is longer than 1.
    others = [axis for axis in range(array.ndim) if axis not in header.spatial]
    array = array.transpose(*others, *header.spatial).reshape(-1, *grid.shape, order="F")
    return Picture(colour_channels(array, path), grid)


def read_grid(path: Path) -> Grid:
    """The grid in an NRRD header; not physical where it states neither directions nor spacings."""
    return _grid(_read_header(path))


def warnings(path: Path) -> list[str]:
    """A sentence where the header states a voxel size and no anatomical space."""
    header = _read_header(path)
    space = str(header.fields.get("space", "")).lower()
    known = space in TO_RAS or space in ("left-posterior-superior", "lps")
    if known or not _grid(header).physical:
        return []
    return [f"{path} states no anatomical space (left or right, say); its axes are taken as left, posterior, superior."]


def encode(labels: Array, like: Path) -> bytes:
    """An NRRD file of `labels` whose geometry fields are those of `like`, word for word."""
    source = _read_header(like)
    sizes = labels.shape[: len(source.spatial)]
    lines = ["NRRD0005", f"type: {labels.dtype.name}", f"dimension: {len(sizes)}"]
    lines += [f"{name}: {source.texts[name]}" for name in WHOLE_FIELDS if name in source.texts]
    lines += ["sizes: " + " ".join(map(str, sizes))]
    for name in AXIS_FIELDS:
        if name in source.texts:
            words = re.findall(r'\([^)]*\)|"[^"]*"|\S+', source.texts[name])
            lines.append(f"{name}: " + " ".join(words[axis] for axis in source.spatial))
    lines += ["kinds: " + " ".join(["domain"] * len(sizes)), "endian: little", "encoding: gzip"]
    little = labels.astype(labels.dtype.newbyteorder("<"), copy=False)
    return "\n".join([*lines, "", ""]).encode() + gzip_bytes(little.tobytes(order="F"))


def _read_header(path: Path) -> _Header:
    lines: list[str] = []
    with path.open("rb") as file:
        if file.read(4) != b"NRRD":
            raise UnreadableError(f"{path} is no NRRD file; give it the suffix of what it is or replace it with an intact copy.")
        file.seek(0)
        # Decoded here because pynrrd drops the sign for micro and would read micrometres as metres.
        while line := file.readline(LONGEST_HEADER):
            if not (text := line.decode("utf-8", "replace").rstrip()) or file.tell() > LONGEST_HEADER:
                break
            lines.append(text)
        end = file.tell()
    fields = nrrd.read_header(lines)
    if isinstance(fields.get("centers"), str):  # an older name of `centerings`, which pynrrd leaves as text
        fields["centers"] = fields["centers"].split()
    texts = {}
    for text in lines[1:]:
        if not text.startswith("#"):
            name, value = re.split(":=?", text, maxsplit=1)
            texts[name.strip()] = value.strip()
    for name in ("dimension", "sizes", "type", "encoding"):
        if name not in fields:
            raise UnreadableError(f"{path}: the header has no field `{name}`; replace it with an intact copy.")
    for name in ("sizes", "kinds", *AXIS_FIELDS):
        if name in fields and len(fields[name]) != fields["dimension"]:
            raise UnreadableError(f"{path}: `{name}` does not have one value for each axis; replace it with an intact copy.")
    return _Header(path, fields, texts, end, _spatial_axes(fields, path))


def _spatial_axes(fields: dict[str, Any], path: Path) -> list[int]:
    sizes = [int(n) for n in fields["sizes"]]
    stated: Any = fields.get("space directions")
    if stated is None and "spacings" in fields and np.isfinite(fields["spacings"]).any():
        stated = fields["spacings"][:, None]
    if stated is not None:
        axes = [axis for axis, row in enumerate(stated) if row is not None and np.isfinite(row).all()]
    else:
        kinds = fields.get("kinds", ["domain"] * len(sizes))
        axes = [axis for axis, kind in enumerate(kinds) if kind.lower() in ("domain", "space", "???", "none")]
    axes = axes[:3] + [axis for axis in axes[3:] if sizes[axis] > 1]
    others = [n for axis, n in enumerate(sizes) if axis not in axes and n > 1]
    kinds = fields.get("kinds", [""] * len(sizes))
    series = any(kind.lower() in ("time", "list") and n > 1 for kind, n in zip(kinds, sizes, strict=True))
    if len(axes) not in (2, 3) or len(others) > 1 or series:
        shape = " x ".join(map(str, sizes))
        raise UnreadableError(
            f"{path} is a {len(sizes)}D file ({shape}) and not one 2D or 3D picture; save the one to segment alone."
        )
    return axes


def _grid(header: _Header) -> Grid:
    shape = tuple(header.sizes[axis] for axis in header.spatial)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = _directions(header)
    physical = any(name in header.fields for name in ("space directions", "spacings")) and bool(np.isfinite(affine).all())
    if not physical:
        return Grid.pixels(shape)
    flips = TO_RAS.get(str(header.fields.get("space", "")).lower(), LPS_TO_RAS)
    affine[:3] *= np.asarray(flips, float)[:, None]
    # Minus zero would print oddly and is no other place.
    return grid_of(shape, affine + 0.0, header.path)


def _directions(header: _Header) -> tuple[Array, Array]:
    """Steps along the voxel axes as columns, and the first voxel's centre, in the file's own space in mm."""
    n = len(header.spatial)
    steps, origin = np.eye(3), np.zeros(3)
    if (rows := header.per_axis("space directions")) is not None:
        matrix = np.stack(rows)
        world = matrix.shape[1]
        factor = np.array([millimetres(u, header.path) for u in header.fields.get("space units", [""] * world)])
        steps[:world, :n] = matrix.T * factor[:, None]
        if n == 2 and world == 3:  # a slice that lies in 3D space: one voxel of 1 mm across it
            normal = np.cross(matrix[0], matrix[1])
            steps[:, 2] = normal / np.linalg.norm(normal)
        origin[:world] = np.asarray(header.fields.get("space origin", np.zeros(world)), float) * factor
        return steps, origin
    spacings = header.per_axis("spacings")
    if spacings is not None:
        factor = np.array([millimetres(u, header.path) for u in header.per_axis("units") or [""] * n])
        size = np.asarray(spacings, float) * factor
        steps[:n, :n] = np.diag(size)
        if (mins := header.per_axis("axis mins", "axismins")) is not None:
            centers = header.per_axis("centers", "centerings") or ["cell"] * n
            half = np.array([0.5 if center == "cell" else 0.0 for center in centers])
            origin[:n] = np.nan_to_num(np.asarray(mins, float) * factor) + half * size
    return steps, origin


def _voxels(header: _Header) -> Array:
    path, fields = header.data_file or header.path, header.fields
    encoding = fields["encoding"].lower()
    as_text = encoding in ("ascii", "text", "txt")
    dtype = _dtype(header, as_text)
    data: Buffer = open_bytes(path)
    start = header.end if path == header.path else 0
    for _ in range(int(fields.get("line skip", fields.get("lineskip", 0)))):
        start = data.find(b"\n", start) + 1
    skip = int(fields.get("byte skip", fields.get("byteskip", 0)))
    if as_text:
        return text_voxels(data, dtype, header.sizes, start + skip, path)
    if encoding == "raw":
        return voxels(data, dtype, header.sizes, -1 if skip < 0 else start + skip, path)
    if encoding not in UNPACK:
        raise UnreadableError(f"{header.path}: the encoding `{encoding}` is not supported; save it with gzip.")
    return voxels(UNPACK[encoding](data[start:]), dtype, header.sizes, -1 if skip < 0 else skip, path)


def _dtype(header: _Header, as_text: bool) -> np.dtype[Any]:
    name, endian = header.fields["type"], header.fields.get("endian", "")
    if name not in NUMPY_TYPE:
        raise UnreadableError(f"{header.path}: voxels of type `{name}` are not supported; save it as integers or floats.")
    dtype = np.dtype(NUMPY_TYPE[name])
    if as_text or dtype.itemsize == 1:
        return dtype
    if endian not in ("little", "big"):
        raise UnreadableError(f"{header.path}: the header does not say which `endian` its voxels have; write it again.")
    return dtype.newbyteorder("<" if endian == "little" else ">")
