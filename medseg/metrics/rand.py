"""Rand error for membranes in electron microscopy: are the same pixels in the same cell?"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def adapted_rand_error(reference: Mask, prediction: Mask, ignored: Mask | None = None) -> float:
    """1 - F score of pairs of pixels that lie in one cell (Arganda-Carreras et al. 2015), by scikit-image.

    Cells are the connected components of what is not membrane, over faces (4 neighbours in 2D, 6 in 3D), in each mask. Pixels
    that are membrane in the reference are left out; the predicted membrane among the rest counts as one more segment.

    Args:
        reference, prediction: (X, Y) or (X, Y, Z) bool, True on the membrane.
        ignored: pixels to leave out besides.
    Returns: 0 (the same cells) to 1; NaN where the reference has no pixel outside the membrane.
    """
    from scipy import ndimage
    from skimage.metrics import adapted_rand_error as scikit_image_error

    outside = ~reference if ignored is None else ~reference & ~ignored
    if not outside.any():
        return math.nan
    cells, _ = ndimage.label(outside)
    # Ignored pixels must not join predicted cells either: they are no membrane, whatever the prediction holds there.
    predicted_cells, _ = ndimage.label(~prediction if ignored is None else ~prediction & ~ignored)
    # Two 2D pictures of one pixel, or cells of one pixel each, hold no pair; scikit-image then divides 0 by 0.
    with np.errstate(invalid="ignore", divide="ignore"):
        error, _, _ = scikit_image_error(cells, predicted_cells)
    return float(error)
