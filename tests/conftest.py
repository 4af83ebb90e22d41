"""Options and fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# One thread a process, in tests and in the processes that they start: networks this small lose more time waiting for a second
# thread than it saves, many times over on a busy machine. It must stand before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real-data", type=Path, default=None, metavar="DIR", help="folder of real labelled data sets")
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key of pseudonyms and caches of these tests, never those of the person who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture
def real_data(request: pytest.FixtureRequest) -> Path:
    """The folder given with --real-data; the test is skipped without it."""
    folder = request.config.getoption("--real-data")
    if folder is None or not folder.is_dir():
        pytest.skip("needs real data: run with --real-data DIR")
    return Path(folder).resolve()
