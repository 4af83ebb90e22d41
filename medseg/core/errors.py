"""Every error that a user can cause, as a tree. Each message is one sentence: what, where, what to do.

MedsegError
├── ConfigError        the configuration is wrong or contradicts itself
├── ManifestError      the manifest CSV is wrong
├── StageError         a stage cannot run: an earlier one is missing, or a finished one would be overwritten
├── ModelFileError     a model file is missing, damaged or does not fit
├── MissingExtraError  an optional package is not installed; the message says which command mends it
├── FetchError         a public data set cannot be reached, or is not what its checksum says
├── OutputError        an output cannot be written (disk full, no permission)
└── CaseError          one case cannot be used: a row with a reason in a batch, an error when it stands alone
    ├── UnreadableError    the file is missing, truncated, or not what its name says
    ├── GridMismatchError  two pictures of one case do not lie on the same voxels
    ├── LabelError         label values that are unknown, fractional, negative or absent
    └── IntensityError     NaN, infinite or constant voxels
"""


class MedsegError(Exception):
    """Base of all errors that are the user's to mend; printed without a traceback."""

    exit_code = 2


class ConfigError(MedsegError):
    pass


class ManifestError(MedsegError):
    """`case_id` is the case at fault, empty where it is the whole table."""

    def __init__(self, message: str, case_id: str = "") -> None:
        super().__init__(message)
        self.case_id = case_id


class StageError(MedsegError):
    pass


class ModelFileError(MedsegError):
    pass


class MissingExtraError(MedsegError):
    pass


class FetchError(MedsegError):
    pass


class OutputError(MedsegError):
    pass


class CaseError(MedsegError):
    pass


class UnreadableError(CaseError):
    pass


class GridMismatchError(CaseError):
    pass


class LabelError(CaseError):
    pass


class IntensityError(CaseError):
    pass
