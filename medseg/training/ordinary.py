"""What ordinary cases look like, learnt at the end of a training: from references, and from the validation cases' masks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from medseg.core.grid import Grid
from medseg.core.labels import IGNORE, LabelScheme
from medseg.core.volume import LabelMap
from medseg.data.store import PreparedCase
from medseg.inference.features import Features, Observer, Picture, coarse_picture, mask_features, scan_features
from medseg.inference.postprocess import Classes, Postprocessing, postprocess
from medseg.inference.typical import Typical, learn
from medseg.training.calibration import COLDEST, HOTTEST
from medseg.training.job import Job

MOST_CASES = 200  # whose references are looked at; more would narrow no range by much
TEMPERATURES = np.geomspace(COLDEST, HOTTEST, 13)  # at which doubt is summed up, for the temperature is chosen last


class Seen:
    """What is kept of a validation case while others are predicted: its mask, and its doubt at many temperatures.

    Args:
        logits: (n_outputs, X, Y, Z) float32, not divided by a temperature.
        classes, reference: (X, Y, Z) uint8, what is decided of them, and what it should be.
    """

    def __init__(self, logits: npt.NDArray[np.float32], classes: Classes, reference: Classes, labels: LabelScheme) -> None:
        self.shape, self.labels = classes.shape, labels
        self._mask = zlib.compress(np.ascontiguousarray(classes).tobytes(), 1)  # a hundredth: most of it is background
        whole = torch.from_numpy(logits)
        self._doubt = []
        for temperature in TEMPERATURES:
            observer = Observer(labels)
            observer.add(whole, float(temperature))
            self._doubt.append(observer.features())
        self._agreement = agreement(classes, reference, labels)

    @property
    def classes(self) -> Classes:
        """(X, Y, Z) uint8 class indices."""
        return np.frombuffer(zlib.decompress(self._mask), np.uint8).reshape(self.shape)

    def features(self, postprocessing: Postprocessing | None, temperature: float, grid: Grid) -> Features:
        """What the mask and the answer would show, as `describe` names it."""
        classes = self.classes
        if postprocessing is not None:
            classes = postprocess(classes, postprocessing, self.labels, grid)
        doubt = {name: _between([at[name] for at in self._doubt], temperature) for name in self._doubt[0]}
        return mask_features(LabelMap(classes, grid), grid, self.labels) | doubt | {"mirror_dice": self._agreement}


def _between(values: Sequence[float], temperature: float) -> float:
    """The value at a temperature, interpolated between those at `TEMPERATURES`, all on logarithmic scales."""
    logs = np.log(np.maximum(values, 1e-9))
    return float(np.exp(np.interp(math.log(temperature), np.log(TEMPERATURES), logs)))


def agreement(classes: Classes, reference: Classes, labels: LabelScheme) -> float:
    """Dice of all structures or regions together, as `Observer.compare` has it for mirrored scans; NaN of two empty masks."""
    known = reference != IGNORE
    both = either = 0
    for members in labels.measured.values():
        one, other = np.isin(classes, members) & known, np.isin(reference, members)
        both += 2 * int((one & other).sum())
        either += int(one.sum()) + int(other.sum())
    return both / either if either else math.nan


def learn_typical(job: Job, seen: Mapping[str, Seen], postprocessing: Postprocessing | None, temperature: float) -> Typical:
    """What travels in the model file to tell unusual cases by.

    Args:
        seen: of each validation case, by its id.
    """
    some = np.unique(np.linspace(0, len(job.train_ids) - 1, min(len(job.train_ids), MOST_CASES)).round().astype(int))
    known, pictures, answers = [], [], []
    for case_id in [*seen, *(job.train_ids[index] for index in some)]:
        features, picture, grid = _of_reference(job, job.store.open(case_id))
        known.append(features)
        pictures.append(picture)
        if case_id in seen:
            answers.append(seen[case_id].features(postprocessing, temperature, grid))
    return learn(known, answers, pictures, list(job.labels.measured))


def _of_reference(job: Job, case: PreparedCase) -> tuple[Features, Picture, Grid]:
    preprocessing = job.plan.preprocessing
    grid = Grid(case.classes.shape, np.diag([*(preprocessing.spacing or (1.0, 1.0, 1.0)), 1.0]), preprocessing.physical)
    features = scan_features(case.image, grid)
    if (case.classes == IGNORE).mean() < 0.5:  # of scribbles and single annotated slices, size and place tell nothing
        features |= mask_features(LabelMap(np.array(case.classes), grid), grid, job.labels)
    return features, coarse_picture(case.image), grid
