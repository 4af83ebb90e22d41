"""Masks as files: in the scan's own family, or as DICOM objects that refer to it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import medseg
from medseg.core.errors import CaseError
from medseg.core.files import atomic_path
from medseg.core.labels import LabelScheme
from medseg.core.volume import LabelMap
from medseg.inference.bundle import Bundle
from medseg.io.formats import Source, label_name, write_labels
from medseg.io.series import Series

Form = Literal["same", "dicom-seg", "rtstruct"]
SUFFIXES = {"dicom-seg": ".seg.dcm", "rtstruct": ".rtstruct.dcm"}


def mask_name(case_id: str, scan: Source, form: Form) -> str:
    """The file name of a mask. Raises: CaseError where a scan of this kind has no mask of this form."""
    if form == "same":
        return label_name(case_id, scan)
    if not isinstance(scan, Series):
        raise CaseError(
            f"{scan} is no DICOM series, so there is nothing for a mask in the form {form} to refer to; leave it out."
        )
    return case_id + SUFFIXES[form]


def write_mask(path: Path, labels: LabelMap, scan: Source, form: Form, scheme: LabelScheme, bundle: Bundle) -> None:
    """Write a mask that lies on its scan, whole or not at all.

    Args:
        labels: the ids of the scheme.
        form: `same` is the scan's own format family, for DICOM NIfTI; the others are DICOM objects, with the series' patient.
        bundle: what made it.
    Raises: CaseError where the scan allows no such mask, OutputError.
    """
    if form == "same":
        write_labels(path, labels, scan)
        return
    from medseg.io.derived import MadeBy  # highdicom takes half a second
    from medseg.io.dicom_seg import encode_seg
    from medseg.io.rtstruct import encode_rtstruct

    assert isinstance(scan, Series)
    made_by = MadeBy(bundle.description.model, bundle.sha256, medseg.__version__)
    content = (encode_seg if form == "dicom-seg" else encode_rtstruct)(labels.array, scan, scheme, made_by)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
