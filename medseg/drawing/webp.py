"""Pictures in few bytes, for a page that holds hundreds of them."""

from __future__ import annotations

import io

from PIL import Image

# How much smaller, and how good: a picture loses its fine grain first, then its size.
TRIES = ((1, 75), (1, 50), (1, 25), (2, 60), (2, 25), (4, 50), (4, 10), (8, 10))
EFFORT = 2  # a third of the time of the usual 4 for files a twentieth larger


def to_webp(picture: Image.Image, most: int) -> bytes:
    """A picture as WebP, as good as `most` bytes allow; where it takes that it has a half, a quarter or an eighth of its size."""
    for smaller, quality in TRIES:
        buffer = io.BytesIO()
        picture.reduce(smaller).save(buffer, "WEBP", quality=quality, method=EFFORT)
        if buffer.tell() <= most:
            break
    return buffer.getvalue()
