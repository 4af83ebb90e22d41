"""`medseg manifest`: write a manifest from a folder of scans and a folder of labels."""

from __future__ import annotations

from pathlib import Path

from medseg.core.errors import OutputError
from medseg.core.files import write_text
from medseg.core.progress import say
from medseg.data.build_manifest import build_manifest

MOST_SHOWN = 20


def manifest(images: Path, labels: Path, output: Path) -> int:
    """Write the manifest and list the files that found no partner. Returns 1 where there are any, else 0."""
    if output.exists():
        raise OutputError(f"{output} exists already; name another file with --output, or move it away.")
    draft = build_manifest(images, labels)
    write_text(output, draft.table.to_csv(index=False, lineterminator="\n"))
    _list(draft.images_without_label, "scans have no label of the same name and are left out")
    _list(draft.labels_without_image, "labels have no scan of the same name and are left out")
    say(f"{len(draft.table)} cases in {output}. In the configuration, set data.manifest: {output} and data.root: {draft.root}")
    say(
        "The column `patient_id` is empty: fill it in where a patient has several cases, so that nobody is trained on and tested."
    )
    say("The column `split` is empty: a split is then drawn by patient; or write train, val or test in every row.")
    return 1 if draft.images_without_label or draft.labels_without_image else 0


def _list(paths: list[Path], what: str) -> None:
    if paths:
        say(f"{len(paths)} {what}:")
        for path in paths[:MOST_SHOWN]:
            say(f"  {path}")
        if len(paths) > MOST_SHOWN:
            say(f"  ... and {len(paths) - MOST_SHOWN} more")
