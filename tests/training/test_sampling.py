"""The one resampling, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.training.elastic import RandElasticAffineCropd
from medseg.training.sampling import bending, bezier_points, bspline_weights, copying, read, spline_field, take

CPU = torch.device("cpu")
SHAPE = (22, 19, 17)


def control_of(patch, seed, shape=SHAPE, centre=(11, 9, 8)):
    drawn = RandElasticAffineCropd(
        ["image"],
        patch,
        "bilinear",
        elastic=(1, (3, 6), (0.05, 0.1)),
        rotation=(1, (-30, 30)),
        scaling=(1, (0.7, 1.4)),
        shear=(1, 0.1),
    )
    return drawn.set_random_state(seed).draw(shape, centre).control


def test_bspline_weights_reproduce_lines_and_add_up_to_one():
    weights = bspline_weights(11, 4, CPU, torch.float32).numpy()
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights @ (np.arange(-1, 6) / 4 * 10), np.arange(11), atol=1e-5)


@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0)])
@pytest.mark.parametrize("patch", [(12, 10, 8), (12, 10, 1)])
def test_sampling_agrees_with_scipy(mode, order, patch):
    rng = np.random.default_rng(0)
    picture = rng.normal(size=(2, *SHAPE)).astype(np.float32) if order else rng.integers(0, 4, (1, *SHAPE)).astype(np.uint8)
    for seed in range(4):
        control = control_of(patch, seed)
        where = bending(control, patch, SHAPE, (False,) * 3)
        assert where.flat == (2 if patch[2] == 1 else None)
        ours = take([read(picture, where)], [mode], where, patch)[0].numpy()
        positions = np.moveaxis(spline_field(torch.from_numpy(control), patch).numpy(), -1, 0)
        theirs = np.stack([ndimage.map_coordinates(c, positions, order=order, mode="grid-constant") for c in picture])
        if order:
            np.testing.assert_allclose(ours, theirs.astype(np.float32), atol=2e-4)
        else:
            # Positions half-way between two voxels may round either way.
            assert ours.dtype == np.uint8 and (ours == theirs).mean() > 0.999


def test_a_flat_patch_outside_of_the_picture_is_empty():
    picture = np.ones((1, 20, 20, 4), np.float32)
    for z, inside in ((-1, False), (0, True), (3, True), (4, False)):
        where = bending(control_of((8, 8, 1), 0, (20, 20, 4), (10, 10, z)), (8, 8, 1), (20, 20, 4), (False,) * 3, margin=1)
        patches = take([read(picture, where)] * 2, ["bicubic", "nearest"], where, (8, 8, 1))
        assert all(bool((patch > 0.99).all()) if inside else bool((patch < 1e-4).all()) for patch in patches)


def test_the_hull_holds_the_field_tightly():
    for seed in range(10):
        control = control_of((24, 20, 16), seed)
        field = spline_field(torch.from_numpy(control), (24, 20, 16)).numpy().reshape(-1, 3)
        hull = bezier_points(control).reshape(-1, 3)
        assert (hull.min(0) <= field.min(0) + 1e-3).all() and (hull.max(0) >= field.max(0) - 1e-3).all()
        assert (np.ptp(hull, axis=0) < 1.15 * np.ptp(field, axis=0)).all()


def test_a_copy_beyond_every_side_and_mirrored():
    picture = np.arange(1, 28, dtype=np.uint8).reshape(1, 3, 3, 3)
    where = copying((-1, -2, -3), (5, 7, 9), (3, 3, 3), (True, False, False))
    result = take([read(picture, where)], ["nearest"], where, (5, 7, 9))[0]
    assert result.shape == (1, 5, 7, 9) and result.sum() == picture.sum()
    np.testing.assert_array_equal(result[:, 1:4, 2:5, 3:6], picture[:, ::-1])


def test_the_field_of_other_devices_is_the_cpus_to_a_thousandth():
    """They compute it in float64, because of TF32; the meta device cannot tell values, so the arithmetic is compared."""
    control = torch.from_numpy(control_of((24, 20, 16), 0))
    wx, wy, wz = (bspline_weights(n, c - 3, CPU, torch.float64) for n, c in zip((24, 20, 16), control.shape, strict=False))
    exact = torch.einsum("xi,yj,zk,ijkn->xyzn", wx, wy, wz, control)
    assert (spline_field(control, (24, 20, 16)) - exact).abs().max() < 1e-3
    elsewhere = spline_field(control.to("meta"), (24, 20, 16))
    assert elsewhere.dtype == torch.float32 and elsewhere.shape == (24, 20, 16, 3) and elsewhere.device.type == "meta"
