"""What tools and people put behind the name of a case: to call its mask, and to number its channels."""

from __future__ import annotations

import re

# Cellpose, BIDS, SCT and Slicer among them.
MASK_SUFFIX = re.compile(
    r"(?<=.)[._-](cp_masks|d?seg|segmentations?|masks?|labels?|labelmap|gt|ground_?truth|truth|manual|preds?|predictions?)$",
    re.IGNORECASE,
)
CELLPOSE = "_cp_masks"  # the one of them that stands beside the pictures
CHANNEL_SUFFIX = re.compile(r"(?<=.)_(\d{4})$")  # nnU-Net: p01_0000.nii.gz, p01_0001.nii.gz
FIRST_CHANNEL = re.compile(r"(?<=.)_0000$")


def bare_name(name: str) -> str:
    """A name without the endings that masks get, and without nnU-Net's number of the first channel."""
    while (shorter := FIRST_CHANNEL.sub("", MASK_SUFFIX.sub("", name))) != name:
        name = shorter
    return name
