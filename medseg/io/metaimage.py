"""MetaImage, .mha and .mhd with .raw or .zraw (https://itk.org/Wiki/MetaIO/Documentation).

Parsed here and not by SimpleITK, whose reader corrupts the memory of the process on some damaged files; the tests compare
the two on intact ones.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.core.errors import UnreadableError
from medseg.core.grid import Grid
from medseg.io.payload import Buffer, open_bytes, text_voxels, voxels, zlib_bytes
from medseg.io.picture import LPS_TO_RAS, Array, Picture, colour_channels, grid_of, millimetres

LONGEST_HEADER = 1 << 20
DIRECTION = ("TransformMatrix", "Rotation", "Orientation")
ORIGIN = ("Offset", "Origin", "Position")
SPACING = ("ElementSpacing", "ElementSize")
GEOMETRY_FIELDS = (*DIRECTION, *ORIGIN, "CenterOfRotation", "AnatomicalOrientation", *SPACING, "DistanceUnits")
NUMPY_TYPE = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
ELEMENT_TYPE = {"uint8": "MET_UCHAR", "uint16": "MET_USHORT"}


@dataclass(frozen=True)
class _Header:
    path: Path
    fields: dict[str, str]
    end: int

    def numbers(self, names: tuple[str, ...], count: int, default: float | None = None) -> Array | None:
        """The numbers of the first field that is there, or `default` repeated, or None."""
        for name in names:
            if name in self.fields:
                values = np.array([float(word) for word in self.fields[name].split()])
                if values.size != count:
                    raise UnreadableError(f"{self.path}: `{name}` should have {count} numbers; replace it with an intact copy.")
                return values
        return None if default is None else np.full(count, default)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(int(word) for word in self.fields["DimSize"].split())

    def says(self, *names: str) -> bool:
        """True where one of these fields does."""
        return any(self.fields.get(name, "").lower() in ("true", "1") for name in names)


def read(path: Path, as_labels: bool) -> Picture:
    """The scan or label map in a MetaImage. Raises: UnreadableError, ValueError, KeyError, OSError, zlib.error."""
    header = _read_header(path)
    grid = _grid(header)
    return Picture(colour_channels(_voxels(header).reshape(-1, *grid.shape, order="F"), path), grid)


def read_grid(path: Path) -> Grid:
    """The grid in a MetaImage header, which is in LPS; not physical where it states no spacing."""
    return _grid(_read_header(path))


def encode(labels: Array, like: Path) -> bytes:
    """A .mha file of `labels` whose geometry fields are those of `like`, word for word."""
    source = _read_header(like)
    little = labels.astype(labels.dtype.newbyteorder("<"), copy=False)
    payload = zlib_bytes(little.tobytes(order="F"))
    fields = {
        "ObjectType": "Image",
        "NDims": source.fields["NDims"],
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": str(len(payload)),
        **{name: source.fields[name] for name in GEOMETRY_FIELDS if name in source.fields},
        "DimSize": source.fields["DimSize"],
        "ElementType": ELEMENT_TYPE[labels.dtype.name],
        "ElementDataFile": "LOCAL",
    }
    return "".join(f"{name} = {value}\n" for name, value in fields.items()).encode() + payload


def _read_header(path: Path) -> _Header:
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "ElementDataFile" not in fields:
            line = file.readline(LONGEST_HEADER).decode("utf-8", "replace")
            name, equals, value = line.partition("=")
            if (line.strip() and not equals) or not line or file.tell() > LONGEST_HEADER:
                raise UnreadableError(f"{path} has no complete MetaImage header; replace it with an intact copy.")
            fields[name.strip()] = value.strip()
        end = file.tell()
    for name in ("NDims", "DimSize", "ElementType"):
        if name not in fields:
            raise UnreadableError(f"{path}: the header has no field `{name}`; replace it with an intact copy.")
    return _Header(path, fields, end)


def _grid(header: _Header) -> Grid:
    path, sizes = header.path, header.sizes
    n = len(sizes)
    if n != int(header.fields["NDims"]) or n < 2 or max(sizes[3:], default=1) != 1:
        shape = " x ".join(map(str, sizes))
        raise UnreadableError(f"{path} is a {n}D file ({shape}) and not one 2D or 3D picture; save the one to segment alone.")
    spacing = header.numbers(SPACING, n)
    if spacing is None:
        return Grid.pixels(sizes)
    axes = min(n, 3)
    # The field lists the directions of the axes one after the other; in the affine they are columns.
    matrix = header.numbers(DIRECTION, n * n)
    directions = np.eye(n) if matrix is None else matrix.reshape(n, n).T
    origin = header.numbers(ORIGIN, n, default=0.0)
    assert origin is not None
    affine = np.eye(4)
    affine[:axes, :axes] = directions[:axes, :axes] * spacing[:axes]
    affine[:axes, 3] = origin[:axes]
    factor = millimetres(header.fields.get("DistanceUnits", ""), path)
    affine[:axes] *= factor
    affine[:3] *= LPS_TO_RAS[:, None]
    return grid_of(sizes[:3], affine + 0.0, path)


def _voxels(header: _Header) -> Array:
    """(values a voxel, X, Y, Z) of the file's own type."""
    fields, name = header.fields, header.fields["ElementDataFile"]
    if name.split()[0] == "LIST" or "%" in name:
        raise UnreadableError(f"{header.path} lists one file a slice; save it as one .mha file.")
    if fields["ElementType"] not in NUMPY_TYPE:
        raise UnreadableError(
            f"{header.path}: voxels of type `{fields['ElementType']}` are not supported; save it as integers or floats."
        )
    local = name.upper() == "LOCAL"
    path = header.path if local else header.path.parent / name
    data: Buffer = open_bytes(path)
    start = header.end if local else int(fields.get("HeaderSize", 0))
    dtype = np.dtype(NUMPY_TYPE[fields["ElementType"]])
    shape = (int(fields.get("ElementNumberOfChannels", 1)), *header.sizes)
    if fields.get("BinaryData", "True").lower() == "false":
        return text_voxels(data, dtype, shape, start, path)
    dtype = dtype.newbyteorder(">" if header.says("BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<")
    if header.says("CompressedData"):
        return voxels(zlib.decompress(data[start:]), dtype, shape, 0, path)
    return voxels(data, dtype, shape, start, path)
