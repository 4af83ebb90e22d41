"""How far a network's probabilities can be believed, and the one number that mends most of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize
from scipy.special import expit, logsumexp, softmax

from medseg.core.labels import IGNORE, LabelScheme

Logits = npt.NDArray[np.float32]

COLDEST, HOTTEST = 0.1, 10.0  # where a sample is predicted without a fault, ever smaller temperatures would fit it
BINS = 15  # of the calibration error (Guo et al. 2017)


@dataclass(frozen=True, eq=False)
class Answers:
    """Some voxels' logits, and what they should have said.

    Args:
        logits: (N, n_outputs) float32.
        truth: (N,) class of each voxel, or (N, n_outputs) bool where regions are answered yes or no.
    """

    logits: Logits
    truth: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]

    @property
    def binary(self) -> bool:
        return self.truth.ndim == 2


def some_answers(
    logits: Logits, classes: npt.NDArray[np.uint8], labels: LabelScheme, most: int, rng: np.random.Generator
) -> Answers:
    """A random draw of at most `most` voxels of a case, ignored ones left out.

    Args:
        logits: (n_outputs, X, Y, Z). classes: (X, Y, Z), the reference.
    """
    voxels = np.flatnonzero(classes != IGNORE)
    if len(voxels) > most:
        voxels = rng.choice(voxels, most, replace=False)
    truth = classes.ravel()[voxels]
    membership = labels.membership
    return Answers(
        logits.reshape(len(logits), -1)[:, voxels].T.copy(), truth if membership is None else membership[:, truth].T.copy()
    )


def together(parts: list[Answers]) -> Answers:
    """Several cases' answers as one."""
    return Answers(np.concatenate([p.logits for p in parts]), np.concatenate([p.truth for p in parts]))


def cross_entropy(answers: Answers, temperature: float = 1.0) -> float:
    """Mean cross-entropy in nats: a voxel, or with regions a voxel and region."""
    z = answers.logits.astype(np.float64) / temperature
    if answers.binary:
        return float(np.logaddexp(0, np.where(answers.truth, -z, z)).mean())
    return float((logsumexp(z, axis=1) - z[np.arange(len(z)), answers.truth]).mean())


def best_temperature(answers: Answers) -> float:
    """The temperature whose cross-entropy is least (temperature scaling, Guo et al. 2017, ICML).

    The cross-entropy is convex in 1 / temperature, so it has one valley, which golden sections with parabolas find (Brent 1973).

    Returns: between 0.1 and 10; 1 where there is no voxel.
    """
    if not len(answers.logits):
        return 1.0
    limits = (np.log(COLDEST), np.log(HOTTEST))
    found = optimize.minimize_scalar(
        lambda t: cross_entropy(answers, float(np.exp(t))), bounds=limits, method="bounded", options={"xatol": 1e-3}
    )
    return float(np.exp(found.x))


def calibration_error(answers: Answers, temperature: float = 1.0) -> float:
    """Expected calibration error (Naeini et al. 2015) in 15 bins: how far confidence is from the share that is right.

    Confidence is the probability of what is decided: of the greatest class, or of a region's yes or no.
    """
    z = answers.logits.astype(np.float64) / temperature
    if answers.binary:
        confidence, right = expit(np.abs(z)).ravel(), ((z > 0) == answers.truth).ravel()
    else:
        confidence, right = softmax(z, axis=1).max(axis=1), z.argmax(axis=1) == answers.truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / max(1, len(confidence)))
