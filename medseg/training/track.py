"""The log of a training for TensorBoard and for MLflow (a local SQLite file), beside log.csv. Nothing leaves the machine."""

from __future__ import annotations

import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from medseg.core.errors import MedsegError, MissingExtraError, StageError
from medseg.core.progress import say

TENSORBOARD_FOLDER, MLFLOW_FILE = "tensorboard", "mlflow.db"
FOLD_FOLDER = re.compile(r"fold_\d+")
EXPERIMENT = "medseg"
MOST_AT_ONCE = 100  # parameters, of MLflow
LONGEST_VALUE = 500  # characters of a parameter, that every version of MLflow takes


class Tracker(Protocol):
    """One place where rows go."""

    def log(self, step: int, row: Mapping[str, float]) -> None: ...

    def close(self, finished: bool) -> None: ...


class Trackers:
    """Those that the configuration names; one that fails under way is given up with a sentence, and the training goes on."""

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """A row of log.csv, as it stands after so many steps."""
        self._each(lambda tracker: tracker.log(step, row))

    def close(self, finished: bool = True) -> None:
        """Write out what is waiting, and say whether the training has ended or was cut short."""
        self._each(lambda tracker: tracker.close(finished))
        self._trackers.clear()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(finished=kind is None)

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                with _quiet():
                    act(tracker)
            except Exception as error:  # theirs are of many types
                del self._trackers[name]
                say(f"{name}: the log cannot be written ({_short(error)}); the training goes on without it, and with log.csv")


def open_trackers(names: Sequence[str], folder: Path, run: str, settings: Mapping[str, Any], step: int) -> Trackers:
    """Trackers for a training.

    Args:
        names: among `TRACKERS`.
        folder: of the model or of its fold; TensorBoard's files go into it, MLflow's into the `train` folder above.
        run: the name of the model.
        settings: of the training, shown beside its curves.
        step: steps done already. Above 0 the run there goes on, and rows logged after that step are not counted twice.
    Raises: MissingExtraError where a package is not installed; StageError where a tracker's files cannot be used.
    """
    opened: dict[str, Tracker] = {}
    for name in dict.fromkeys(names):
        try:
            with _quiet():
                opened[name] = TRACKERS[name](Path(folder), run, settings, step)
        except ImportError as error:
            raise MissingExtraError(
                f"training.track: {name} needs a package that is not installed ({error.name or error}); "
                'run `pip install "medseg[track]"`, or leave it out.'
            ) from None
        except MedsegError:
            raise
        except Exception as error:
            raise StageError(
                f"training.track: {name} cannot use its files at {folder} ({_short(error)}); "
                "move them elsewhere, or leave it out."
            ) from error
    return Trackers(opened)


class TensorBoard:
    """Event files; their reader drops what was written after the step at which a training went on."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder / TENSORBOARD_FOLDER
        self.writer = SummaryWriter(str(place), purge_step=step + 1 if any(place.glob("*tfevents*")) else None)
        if step == 0:
            text = "\n".join(f"    {key}: {value}" for key, value in flattened(settings).items())
            self.writer.add_text(run, text, 0)

    def log(self, step: int, row: Mapping[str, float]) -> None:
        for key, value in row.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()  # so that a kill loses no row

    def close(self, finished: bool) -> None:
        self.writer.close()


class MLflow:
    """One run a training in the SQLite file; a training that goes on writes into its run again."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any], step: int) -> None:
        from mlflow.tracking import MlflowClient

        _silence("mlflow", "alembic", "sqlalchemy")
        path = (_shared(folder) / MLFLOW_FILE).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(tracking_uri=f"sqlite:///{path.as_posix()}")
        found = self.client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self.client.create_experiment(EXPERIMENT)
        before = self._begun(experiment, run) if step else None
        self.run_id = before or self.client.create_run(experiment, run_name=run).info.run_id
        if before:
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            self._describe(settings)
        self.logged = {key: self._last_step(key) for key in self.client.get_run(self.run_id).data.metrics}

    def log(self, step: int, row: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {_metric_name(key): float(value) for key, value in row.items()}
        new = {key: value for key, value in named.items() if step > self.logged.get(key, 0)}
        self.client.log_batch(self.run_id, metrics=[Metric(key, value, now, step) for key, value in new.items()])
        self.logged |= dict.fromkeys(new, step)

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")

    def _begun(self, experiment: str, run: str) -> str | None:
        """The id of the latest run of this name."""
        runs = self.client.search_runs([experiment], order_by=["attributes.start_time DESC"])
        return next((r.info.run_id for r in runs if r.info.run_name == run), None)

    def _describe(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, value[:LONGEST_VALUE]) for key, value in flattened(settings).items()]
        for start in range(0, len(params), MOST_AT_ONCE):
            self.client.log_batch(self.run_id, params=params[start : start + MOST_AT_ONCE])

    def _last_step(self, key: str) -> int:
        return max(metric.step for metric in self.client.get_metric_history(self.run_id, key))


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any], int], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and JSON values: {"optimizer": {"name": "sgd"}} becomes {"optimizer.name": "sgd"}."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _shared(folder: Path) -> Path:
    """The folder that all trainings of a run share: `train`, for `train/<model>` and for `train/<model>/fold_<k>`."""
    return (folder.parent if FOLD_FOLDER.fullmatch(folder.name) else folder).parent


def _metric_name(key: str) -> str:
    """The key with what MLflow does not take in a name, such as brackets, replaced."""
    return re.sub(r"[^\w.\- ]", "_", key)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _silence(*names: str) -> None:
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _quiet() -> Iterator[None]:
    """Their warnings are about their own insides; a user of medseg can mend none of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
