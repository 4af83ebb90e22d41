"""`medseg doctor`: what this machine has, what would be slow, and what is missing, each with its consequence."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import medseg
from medseg.core.limits import available_cores
from medseg.core.progress import say
from medseg.core.record import commit, machine

Mark = Literal["ok", "slow", "missing"]
LITTLE_MEMORY_GIB, LITTLE_DISK_GIB = 8, 5
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
STEPS_OF_A_CPU_CONFIG, PATCH_VOXELS = 900, (40, 56, 40)  # after so many steps configs/hippocampus_cpu.yaml is good


class Finding(NamedTuple):
    """One line: how it stands, what was found, and what that means for the person in front of the machine."""

    mark: Mark
    what: str
    consequence: str


def doctor() -> int:
    """Say everything; a machine without a GPU is no failure, so this returns 0."""
    say(f"medseg {medseg.__version__} ({commit() or 'not a git checkout'}), Python {sys.version.split()[0]}, {sys.platform}")
    findings = []
    for look in LOOKS:
        for finding in look():
            findings.append(finding)
            say(f"  {finding.mark:8}{finding.what}: {finding.consequence}")
    for mark, text in (("missing", "to mend"), ("slow", "slow but working")):
        if names := [f.what for f in findings if f.mark == mark]:
            say(f"{text}: {'; '.join(names)}")
    if all(f.mark == "ok" for f in findings):
        say("nothing is missing and nothing would be slow.")
    return 0


def processor() -> Iterator[Finding]:
    """The processor and the cores of it that may be used."""
    facts = machine()
    cores = available_cores()
    yield Finding("ok", f"{cores} cores ({facts['processor']})", "cases are read, checked and measured on all of them")
    if (flags := _processor_flags()) and "avx2" not in flags:
        yield Finding("slow", "no AVX2", "all computing is slow; a processor of the last ten years has it")


def arithmetic() -> Iterator[Finding]:
    """Whether the processor computes in bfloat16."""
    try:
        from medseg.planning.machine import bfloat16_unit
    except ImportError:
        return  # said by `packages`
    if unit := bfloat16_unit():
        yield Finding("ok", unit, "training on this processor computes in bfloat16, faster than in float32")
    else:
        text = "training on this processor computes in float32; on one with AMX it is several times faster"
        yield Finding("slow", "no AMX", text)


def memory() -> Iterator[Finding]:
    """Memory of the machine."""
    if (gib := machine()["memory_gib"]) is not None:
        little = gib < LITTLE_MEMORY_GIB
        text = "large scans may not fit; use workers: 1 and crop them" if little else "enough for scans of common sizes"
        yield Finding("slow" if little else "ok", f"{gib:g} GiB of memory", text)


def disk() -> Iterator[Finding]:
    """Space where runs are written: the working folder."""
    gib = shutil.disk_usage(Path.cwd()).free / 2**30
    little = gib < LITTLE_DISK_GIB
    text = "prepared cases may not fit; write runs to another disk with --set output=..." if little else "enough for most runs"
    yield Finding("missing" if little else "ok", f"{gib:.0f} GiB free in the working folder", text)


def graphics() -> Iterator[Finding]:
    """The GPU that PyTorch can use."""
    try:
        import torch
    except ImportError:
        return  # said by `packages`
    if torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield Finding(
            "ok", f"{torch.cuda.get_device_name()} ({gib:.0f} GiB)", "the configurations without `_cpu` are sized for it"
        )
    else:
        text = "use the `_cpu` configurations; a full-sized 3D network would take days here and hours on a GPU"
        yield Finding("slow", "no GPU that PyTorch can use", text)
        if torch.version.cuda is None and shutil.which("nvidia-smi"):
            text = "this PyTorch is built without CUDA; install the build that pytorch.org names for your driver"
            yield Finding("missing", "CUDA in PyTorch, though there is an NVIDIA driver", text)


def compiler() -> Iterator[Finding]:
    """The C++ compiler that torch.compile needs on a CPU."""
    if path := next((found for name in ("g++", "clang++", "cl") if (found := shutil.which(name))), None):
        yield Finding("ok", f"a C++ compiler ({Path(path).name})", "networks are compiled where that pays")
    else:
        text = "networks are not compiled on a CPU, training is up to twice slower; install g++ (apt-get install g++)"
        yield Finding("missing", "a C++ compiler", text)


def packages() -> Iterator[Finding]:
    """The packages that medseg requires, and those of its extras."""
    required, optional = _requirements()
    present, absent = _installed(required)
    if absent:
        yield Finding("missing", ", ".join(absent), f"medseg cannot work; pip install {' '.join(absent)}")
    chief = [f"{name} {present[name]}" for name in ("torch", "monai", "numpy", "SimpleITK", "nibabel") if name in present]
    yield Finding("ok", f"{len(present)} of {len(required)} required packages", ", ".join(chief))
    for extra, names in optional.items():
        if lacking := _installed(names)[1]:
            text = f"only needed by those who change medseg; pip install 'medseg[{extra}]'"
            yield Finding("ok", f"without {', '.join(lacking)}", text)


def browser() -> Iterator[Finding]:
    """A browser that the tests of the report can drive."""
    found = next((name for name in BROWSERS if shutil.which(name)), None)
    text = "a report opens in any browser; the test that looks at one "
    yield Finding("ok", found or "no chromium", text + ("runs" if found else "is skipped without chromium"))


def training_step() -> Iterator[Finding]:
    """The time of one training step on the CPU, measured."""
    try:
        import torch

        from medseg.models.registry import build_network
    except ImportError:
        return
    if torch.cuda.is_available():
        return
    network = build_network(
        "unet", {"features": [16, 32, 64, 128]}, in_channels=1, n_classes=3, patch_voxels=PATCH_VOXELS
    ).train()
    batch = torch.zeros(2, 1, *PATCH_VOXELS)
    seconds = min(_timed(lambda: sum(o.float().mean() for o in network(batch)).backward()) for _ in range(3))
    minutes = seconds * STEPS_OF_A_CPU_CONFIG / 60
    text = (
        f"{STEPS_OF_A_CPU_CONFIG} such steps, which teach it the hippocampus, take about {minutes:.0f} minutes (before compiling)"
    )
    yield Finding("slow" if minutes > 30 else "ok", f"{seconds:.2g} s for a training step of a small 3D U-Net", text)


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    processor,
    arithmetic,
    memory,
    disk,
    graphics,
    compiler,
    packages,
    browser,
    training_step,
)


def _processor_flags() -> set[str]:
    """Instruction sets that Linux reports; empty where it cannot be asked (elsewhere, and on ARM)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Names of the packages that medseg requires, and of those in each of its extras."""
    required: list[str] = []
    optional: dict[str, list[str]] = {}
    try:
        lines = metadata.requires("medseg") or []
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        lines = []
    for line in lines:
        name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        extra = re.search(r"extra == [\"']([^\"']+)", line)
        (optional.setdefault(extra[1], []) if extra else required).append(name)
    return required, optional


def _installed(names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Versions of the packages that are installed, and the names of the others."""
    present: dict[str, str] = {}
    for name in names:
        try:
            present[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return present, [name for name in names if name not in present]


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
