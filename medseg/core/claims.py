"""Which process is at which case, among all that work on one folder."""

from __future__ import annotations

import errno
import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from medseg.core.errors import OutputError, StageError
from medseg.core.progress import say

SECONDS_AT_THE_GATE = 60.0
LOCKLESS = {getattr(errno, name) for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK") if hasattr(errno, name)}


class Claims:
    """Claims on cases, each a lock of the operating system, which ends with the process that holds it, however that ends.

    One file a case, named by a hash: any case id makes a safe name, and none is told. All opening and removing of these files
    happens behind one more lock, the gate, so that nobody can lock a file that another process has just removed.

    Args:
        folder: for the files; made where it is missing. Local, or a network disk with locks (NFS has them).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._held: dict[str, FileLock] = {}

    def claim(self, case_id: str) -> bool:
        """Take a case unless a process, this one included, has it. Does not wait. Raises: OutputError."""
        lock = _lock(self._path(case_id))
        with self._gate():
            if not self._acquired(lock, 0):
                return False
            self._held[case_id] = lock
            return True

    def release(self, case_id: str) -> None:
        """Let go of a case that this object has claimed."""
        with self._gate():
            self._held.pop(case_id).release()
            _unlink(self._path(case_id))

    def sweep(self) -> None:
        """Remove the files that killed processes left."""
        with self._gate():
            self._held_by_others("*.claim")

    @contextmanager
    def alike(self, kind: str, where: Path, alone: Callable[[], None]) -> Iterator[None]:
        """Work here, while the block runs, beside processes of the same kind only.

        Args:
            kind: a hash of all that the results depend on.
            where: the results, for the sentence.
            alone: called first where no other process works here, before one can begin.
        Raises: StageError where one of another kind does; OutputError.
        """
        path = self.folder / f"{kind[:32]}-{secrets.token_hex(4)}.command"
        lock = _lock(path)
        with self._gate():
            others = self._held_by_others("*.command")
            if any(other.name[:32] != path.name[:32] for other in others):
                raise StageError(
                    f"{where}: another process works there with another model, other options or other scans; wait for it to end, "
                    "or choose another output."
                )
            if not others:
                alone()
            self._acquired(lock, 0)
        try:
            yield
        finally:
            with self._gate():
                lock.release()
                _unlink(path)

    def _held_by_others(self, pattern: str) -> list[Path]:
        """The files that a living process holds; those that nobody does are removed. To be called behind the gate."""
        held = []
        for path in self.folder.glob(pattern):
            lock = _lock(path)
            if self._acquired(lock, 0):
                lock.release()
                _unlink(path)
            else:
                held.append(path)
        return held

    def _path(self, case_id: str) -> Path:
        return self.folder / f"{hashlib.sha256(case_id.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.claim"

    @contextmanager
    def _gate(self) -> Iterator[None]:
        gate = _lock(self.folder / "gate")
        if not self._acquired(gate, SECONDS_AT_THE_GATE):
            raise OutputError(f"{gate.lock_file} has been held by another process for a minute; end that process and run again.")
        try:
            yield
        finally:
            gate.release()

    def _acquired(self, lock: FileLock, seconds: float) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=seconds, poll_interval=0.01)
        except Timeout:
            return False
        except NotImplementedError:
            self._tell_lockless()
        except OSError as error:
            if error.errno not in LOCKLESS:
                raise OutputError(f"{lock.lock_file} cannot be written ({error.strerror}); choose another output.") from error
            self._tell_lockless()
        return True

    def _tell_lockless(self) -> None:
        if not getattr(self, "_told", False):
            say(f"{self.folder}: the file system has no locks; see to it that one command at a time works there")
        self._told = True


def _lock(path: Path) -> FileLock:
    return FileLock(path, thread_local=False)  # claimed by the thread of the first step, let go of by that of the last


def _unlink(path: Path) -> None:
    with suppress(OSError):  # Windows keeps what a virus scanner looks at; the next sweep takes it
        path.unlink(missing_ok=True)
