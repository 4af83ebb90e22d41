from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from medseg.core.record import machine


def test_the_gpu_is_named_where_pytorch_is_loaded_and_can_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert "gpu" not in machine() and "torch" not in sys.modules
    for there in (False, True):
        cuda = SimpleNamespace(is_available=lambda there=there: there, get_device_name=lambda: "Phantom GPU")
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
        assert machine().get("gpu") == ("Phantom GPU" if there else None)
