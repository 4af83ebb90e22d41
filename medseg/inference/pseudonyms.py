"""Names for DICOM cases that tell patients and series apart and name nobody."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_config_path

from medseg.core.errors import ConfigError
from medseg.core.files import write_text
from medseg.io.series import Series

SECRET_BYTES = 32
DIGITS = 10  # of each hash, in hex: among 10,000 patients two meet by chance once in 20,000 studies
LONGEST = 64  # characters of a patient's number in a file name; as many as DICOM allows
COLUMNS = ("case_id", "input", "patient_id", "patient_name", "study_uid", "series_uid", "series_number", "files")


@dataclass(frozen=True)
class Pseudonyms:
    """The name of a series: a keyed hash (HMAC-SHA-256) of its patient, and one of the series.

    Without the key nobody can try names of patients to see which one it is. With the same key a series has the same name in every
    folder, and all series of a patient begin with the same digits.
    """

    secret: bytes

    def case_id(self, series: Series) -> str:
        """Two hashes of ten hex digits, the patient's first."""
        return f"{self._hash('patient', series.patient)}-{self._hash('series', series.uid)}"

    def file(self, path: str) -> str:
        """A name for a file that lies among DICOM files, whose folders may be called after patients."""
        return f"file-{self._hash('file', path)}"

    def _hash(self, kind: str, text: str) -> str:
        return hmac.new(self.secret, f"{kind}\0{text}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:DIGITS]


def own_pseudonyms() -> Pseudonyms:
    """With the secret of this user, which lies among the settings of their programs; made when it is first needed.

    Raises: ConfigError where it cannot be read or made.
    """
    path = user_config_path("medseg") / "pseudonyms.key"
    try:
        if not path.exists():
            _make_secret(path)
        text = path.read_text().strip()
    except OSError as error:
        raise ConfigError(
            f"{path}, the key of the pseudonyms, cannot be read or made ({error.strerror}); give yourself permission, or use "
            "--keep-identifiers."
        ) from error
    if not re.fullmatch(f"[0-9a-f]{{{2 * SECRET_BYTES}}}", text):
        raise ConfigError(f"{path}, the key of the pseudonyms, is damaged; bring back its copy, or remove it to get other names.")
    return Pseudonyms(bytes.fromhex(text))


def _make_secret(path: Path) -> None:
    """Write a new secret, whole, unless another process is faster. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(SECRET_BYTES))
    try:
        os.link(new, path)  # unlike a rename, it never replaces the secret that another process uses
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def identified(series: Series) -> str:
    """The name of a series for those who keep identifiers: the patient's number and the series', fit for a file name."""
    number = "" if series.number is None else f"_{series.number}"
    patient = re.sub(r"[^\w.-]+", "_", series.patient)[:LONGEST].strip("._")
    return (patient or "patient") + number


def write_linkage(path: Path, cases: Iterable[tuple[str, str, Series]]) -> None:
    """The table that leads from pseudonyms back to patients, readable by its owner alone.

    Args:
        cases: the case id, the `input` of predictions.csv, and the series.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case_id, shown, series in cases:
        files = ";".join(str(file) for file in series.files)
        writer.writerow([case_id, shown, series.patient, series.name, series.study, series.uid, series.number, files])
    before = os.umask(0o077)
    try:
        write_text(path, text.getvalue())
    finally:
        os.umask(before)
