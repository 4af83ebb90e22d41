"""The file of probabilities that stands beside a mask: what `medseg segment --probabilities` writes, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medseg.core.errors import GridMismatchError, UnreadableError
from medseg.core.grid import Grid
from medseg.core.wording import one_line
from medseg.io.nifti import COMMENT, FULL_SCALE
from medseg.io.payload import gunzip, open_bytes

PROBABILITIES_SUFFIX = ".probabilities.nii.gz"


@dataclass(frozen=True, eq=False)
class ProbabilityMaps:
    """Probabilities of several structures on one grid.

    Args:
        names: of the K structures or regions.
        values: (X, Y, Z, K) uint16, 65535 for 1.
    """

    names: tuple[str, ...]
    values: npt.NDArray[np.uint16]

    def of(self, name: str) -> npt.NDArray[np.float32] | None:
        """(X, Y, Z) float32 probabilities of a structure; None where the file has none of it."""
        if name not in self.names:
            return None
        return self.values[..., self.names.index(name)].astype(np.float32) / np.float32(FULL_SCALE)


def read_probabilities(path: Path, grid: Grid) -> ProbabilityMaps:
    """The probabilities in a file, which must lie on `grid`.

    Raises: UnreadableError for a file that is damaged or not one of ours; GridMismatchError where it lies on other voxels.
    """
    try:
        image = nib.Nifti1Image.from_bytes(gunzip(open_bytes(path)))
        (comment,) = [e.get_content() for e in image.header.extensions if e.get_code() == COMMENT]
        names = tuple(map(str, json.loads(comment)["structures"]))
        values = np.asarray(image.dataobj.get_unscaled())
        if values.ndim != 4 or values.shape[3] != len(names) or values.dtype != np.uint16:
            raise ValueError("other numbers than its comment names")
    except FileNotFoundError:
        raise UnreadableError(f"{path} does not exist; predict with `predict.probabilities: true`.") from None
    except Exception as error:  # nibabel and zlib raise almost anything on damaged bytes
        reason = one_line(error, 200) or type(error).__name__
        raise UnreadableError(f"{path} is no file of probabilities ({reason}); predict the case again.") from error
    if difference := grid.difference(Grid(values.shape[:3], image.affine, grid.physical)):
        raise GridMismatchError(f"{path} does not lie on the reference's voxels: {difference}; predict the case again.")
    return ProbabilityMaps(names, values)
