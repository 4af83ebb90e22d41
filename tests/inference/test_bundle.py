"""Model files: what is written is what is read, and nothing else is ever loaded."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import torch as safetensors_torch
from tiny_models import SCHEME, tiny_bundle, tiny_plan, write_tiny_model

from medseg.core.errors import ModelFileError
from medseg.core.labels import LabelScheme, Region
from medseg.data.normalise import CaseNormalisation, FixedNormalisation
from medseg.data.preprocess import Preprocessing
from medseg.inference.bundle import FIXED_TIME, SEAL, Bundle, Kind, Origin, read_bundle, write_bundle
from medseg.inference.card import air_below, fingerprint_ranges, model_card
from medseg.inference.postprocess import Postprocessing, Rule
from medseg.planning.fingerprint import CaseFingerprint, Fingerprint, Intensities


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model.medseg")


def members(path: Path) -> tuple[dict[str, bytes], bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}, archive.comment


def rewrite(path: Path, change: Callable[[dict[str, bytes]], object], reseal: bool = False) -> None:
    """Change the members of a model file and pack them as medseg does; `reseal` with hashes that agree, as an attacker would."""
    content, comment = members(path)
    change(content)
    if reseal:
        about = json.loads(content["model.json"])
        about["sha256"] = {n: hashlib.sha256(data).hexdigest() for n, data in content.items() if n != "model.json"}
        content["model.json"] = json.dumps(about).encode()
        comment = SEAL + hashlib.sha256(content["model.json"]).hexdigest().encode()
    pack(path, [(entry(name), data) for name, data in content.items()], comment)


def pack(path: Path, content: list[tuple[zipfile.ZipInfo, bytes]], comment: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in content:
            archive.writestr(info, data)
        archive.comment = comment


def entry(name: str, mode: int = 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, FIXED_TIME)
    info.external_attr = mode << 16
    return info


def test_what_is_written_is_read(model: Path) -> None:
    written, read = tiny_bundle(), read_bundle(model)
    assert read.plan == written.plan
    assert read.labels == SCHEME
    assert read.allowed_flips == (0, 1)
    assert read.card == written.card
    assert read.description.temperature is None
    assert len(read.sha256) == 64
    assert {k: v.shape for k, v in read.weights[0].items()} == {k: v.shape for k, v in written.weights[0].items()}
    assert all(torch.equal(read.weights[0][k], v) for k, v in written.weights[0].items())


def test_the_network_answers_as_the_one_that_was_saved(model: Path) -> None:
    first, second = tiny_bundle().networks()[0], read_bundle(model).networks()[0]
    assert not second.training
    x = torch.rand(1, 1, 16, 16, 8)
    with torch.inference_mode():
        torch.testing.assert_close(first(x), second(x))
        assert second(x).shape == (1, 3, 16, 16, 8)


def test_several_weights_are_kept_in_order(tmp_path: Path) -> None:
    bundle = tiny_bundle(weights=12)
    write_bundle(tmp_path / "m.medseg", bundle)
    read = read_bundle(tmp_path / "m.medseg")
    assert len(read.networks()) == 12
    for mine, theirs in zip(bundle.weights, read.weights, strict=True):
        assert all(torch.equal(theirs[k], v) for k, v in mine.items())


def test_equal_models_are_equal_bytes(tmp_path: Path, model: Path) -> None:
    assert write_tiny_model(tmp_path / "again.medseg").read_bytes() == model.read_bytes()
    assert write_tiny_model(tmp_path / "other.medseg", seed=1).read_bytes() != model.read_bytes()


def test_members_are_stored_and_hashed(model: Path) -> None:
    with zipfile.ZipFile(model) as archive:
        assert archive.namelist() == ["card.md", "model.json", "weights_0.safetensors"]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        description = json.loads(archive.read("model.json"))
    assert sorted(description["sha256"]) == ["card.md", "weights_0.safetensors"]
    assert description["format"] == 1


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist; give the path"):
        read_bundle(tmp_path / "none.medseg")
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_bundle(tmp_path)


def test_a_file_cut_short_anywhere(model: Path) -> None:
    content = model.read_bytes()
    for length in {*range(0, len(content), 97), *range(len(content) - 600, len(content)), *range(120)}:
        model.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"truncated or not a medseg model|altered"):
            read_bundle(model)


def same(one: Bundle, other: Bundle) -> bool:
    weights = zip(one.weights, other.weights, strict=True)
    alike = all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in weights)
    return alike and one.description == other.description and one.card == other.card


def test_a_flipped_bit_is_noticed_or_means_nothing(model: Path) -> None:
    content, before = model.read_bytes(), read_bundle(model)
    random = np.random.default_rng(0)
    directory = range(content.rindex(b"PK\1\2") - 200, len(content))  # where what the archive says of its members stands
    for place in {*random.integers(len(content), size=300), *range(140), *directory}:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        model.write_bytes(damaged)
        try:
            read = read_bundle(model)
        except ModelFileError:
            continue
        assert place in directory and same(read, before)


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Some bytes changed, cut out, doubled, zeroed or put in; zip records are hit more often than their share."""
    data = bytearray(content)
    marks = [at for at in range(len(data) - 3) if data[at : at + 2] == b"PK"]
    for _ in range(int(random.integers(1, 4))):
        near = int(random.choice(marks)) + int(random.integers(46))
        at = near if random.random() < 0.5 else int(random.integers(len(data) or 1))
        size = int(random.choice([1, 2, 4, 30, 500]))
        noise = random.integers(256, size=size, dtype=np.uint8).tobytes()
        kind = int(random.integers(6))
        if kind == 0:
            data[at : at + size] = noise
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = data[at : at + size]
        elif kind == 3:
            data[at : at + size] = bytes(size)
        elif kind == 4:
            data[at : at + 4] = random.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"PK\1\2", b"PK\6\6"])
        else:
            data[at:at] = noise
    return bytes(data)


def test_damage_of_any_kind_is_one_error(model: Path) -> None:
    content, before = model.read_bytes(), read_bundle(model)
    random = np.random.default_rng(1)
    for _ in range(500):
        model.write_bytes(damage(content, random))
        try:
            assert same(read_bundle(model), before)
        except ModelFileError as error:
            assert str(error).startswith(str(model))


def test_damaged_contents_with_hashes_that_agree(model: Path) -> None:
    """Whoever makes a file by hand can make its hashes too; what he puts in is still no other error, and never code."""
    whole, random = model.read_bytes(), np.random.default_rng(2)
    for count in range(300):
        name = ("weights_0.safetensors", "model.json", "card.md")[count % 3]
        model.write_bytes(whole)
        content, _ = members(model)
        front = content[name][:400] if count % 2 else content[name]
        changed = damage(b"PK" + front, random)[2:] + content[name][len(front) :]
        try:
            rewrite(model, lambda m, name=name, changed=changed: m.update({name: changed}), reseal=True)
        except (ValueError, TypeError):
            continue  # no JSON any more, so it cannot be sealed
        with contextlib.suppress(ModelFileError):
            read_bundle(model).networks()


def test_hashes_that_agree_are_taken(model: Path) -> None:
    before = read_bundle(model)
    rewrite(model, lambda m: None, reseal=True)  # what the tests with `reseal` change is thus the only thing wrong
    assert same(read_bundle(model), before)


@pytest.mark.parametrize("where", ["before", "between", "after"])
def test_extra_bytes(model: Path, where: str) -> None:
    content = model.read_bytes()
    at = {"before": 0, "between": content.index(b"PK\3\4", 4), "after": len(content)}[where]
    model.write_bytes(content[:at] + b"#!/bin/sh\n" + content[at:])
    with pytest.raises(ModelFileError, match="truncated or not a medseg model"):
        read_bundle(model)


def test_bytes_between_the_members_with_offsets_that_agree(model: Path) -> None:
    content, comment = members(model)
    with zipfile.ZipFile(model, "w") as archive:
        for name, data in content.items():
            archive.writestr(entry(name), data)
            archive.fp.write(b"hidden")  # type: ignore[union-attr]
            archive.start_dir = archive.fp.tell()  # type: ignore[attr-defined,union-attr]
        archive.comment = comment
    with pytest.raises(ModelFileError, match="truncated or not a medseg model"):
        read_bundle(model)


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o755, stat.S_IFIFO | 0o644])
def test_a_member_that_is_no_plain_file(model: Path, mode: int) -> None:
    content, comment = members(model)
    pack(model, [(entry(name, mode if name == "card.md" else 0o644), data) for name, data in content.items()], comment)
    with pytest.raises(ModelFileError, match=r"its card\.md is no plain file"):
        read_bundle(model)


def test_two_members_that_are_the_same_bytes(model: Path) -> None:
    """As in archives that unpack to more than they hold."""
    content, comment = members(model)
    with zipfile.ZipFile(model, "w") as archive:
        for name, data in content.items():
            archive.writestr(entry(name), data)
        again = entry("weights_1.safetensors")
        first = archive.getinfo("weights_0.safetensors")
        again.CRC, again.file_size, again.compress_size = first.CRC, first.file_size, first.compress_size
        again.header_offset = first.header_offset
        archive.filelist.append(again)
        archive.comment = comment
    with pytest.raises(ModelFileError, match="truncated or not a medseg model"):
        read_bundle(model)


def test_a_size_that_the_file_does_not_have(model: Path) -> None:
    content = bytearray(model.read_bytes())
    place = content.rindex(b"PK\1\2")
    for size in (2**31, 2**32 - 2):
        content[place + 20 : place + 28] = struct.pack("<II", size, size)
        model.write_bytes(content)
        with pytest.raises(ModelFileError, match="truncated or not a medseg model"):
            read_bundle(model)


def test_large_members_and_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 2000)  # as if the weights had more than 2 GiB
    path = write_tiny_model(tmp_path / "m.medseg", weights=3)
    assert b"PK\6\6" in path.read_bytes()
    assert same(read_bundle(path), read_bundle(path)) and len(read_bundle(path).weights) == 3


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "weights",
    [
        header(b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}', bytes(16)),
        header(b'{"w":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,16]}}', bytes(16)),
        header(b'{"w":{"dtype":"F32","shape":[0,9223372036854775807,9223372036854775807],"data_offsets":[0,0]}}'),
        header(b'{"w":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}', bytes(16)),
        header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        header(b'{"w":' * 10_000),
        header(b"[]"),
        struct.pack("<Q", 2**63) + b"{}",
        b"",
    ],
)  # fmt: skip
def test_weights_that_promise_what_is_not_there(model: Path, weights: bytes) -> None:
    rewrite(model, lambda m: m.update({"weights_0.safetensors": weights}), reseal=True)
    with pytest.raises(ModelFileError, match=r"weights_0\.safetensors is damaged|do not fit"):
        read_bundle(model).networks()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    bundle = tiny_bundle()
    next(iter(bundle.weights[0].values())).view(-1)[3] = value
    write_bundle(tmp_path / "m.medseg", bundle)
    with pytest.raises(ModelFileError, match="model tiny holds weights that are not finite; train it again"):
        read_bundle(tmp_path / "m.medseg")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.complex64])
def test_weights_of_another_type(model: Path, dtype: torch.dtype) -> None:
    weights = {name: weight.to(dtype) for name, weight in read_bundle(model).weights[0].items()}
    rewrite(model, lambda m: m.update({"weights_0.safetensors": safetensors_torch.save(weights)}), reseal=True)
    with pytest.raises(ModelFileError, match=f"as {dtype}; use the medseg version"):
        read_bundle(model)


def test_whole_numbers_are_no_weights(model: Path) -> None:
    weights = {name: weight.to(torch.int64) for name, weight in read_bundle(model).weights[0].items()}
    rewrite(model, lambda m: m.update({"weights_0.safetensors": safetensors_torch.save(weights)}), reseal=True)
    with pytest.raises(ModelFileError, match="do not fit"):
        read_bundle(model).networks()


def test_a_description_of_a_giant_costs_nothing(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    about = bundle.description.model_copy(update={"options": {"features": [400_000, 800_000]}})  # 10 TB of weights
    write_bundle(tmp_path / "m.medseg", Bundle(about, bundle.weights, ""))
    with pytest.raises(ModelFileError, match="do not fit a unet"):
        read_bundle(tmp_path / "m.medseg").networks()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "not one that medseg wrote"),
        (b'{"format": 1, "sha256": ' + b'{"a":' * 50_000, "not one that medseg wrote"),
        (b'{"format": 1, "sha256": [1]}', "not one that medseg wrote"),
        (b'{"sha256": {}}', "not one that medseg wrote"),
        (b"null", "not one that medseg wrote"),
        (b"\xff\xfe", "not one that medseg wrote"),
        (b'{"format": 1' + b"0" * 5000 + b', "sha256": {}}', "not one that medseg wrote"),
        (b'{"format": 2, "weights": "elsewhere"}', "has format 2 and this medseg reads format 1"),
    ],
)
def test_a_description_of_another_kind(model: Path, text: bytes, message: str) -> None:
    content, _ = members(model)
    content["model.json"] = text
    pack(model, [(entry(n), data) for n, data in content.items()], SEAL + hashlib.sha256(text).hexdigest().encode())
    with pytest.raises(ModelFileError, match=message):
        read_bundle(model)


def test_a_newer_format_may_hold_other_members(model: Path) -> None:
    pack(model, [(entry("model.json"), b'{"format": 3}'), (entry("weights.bin"), b"...")], b"")
    with pytest.raises(ModelFileError, match="has format 3 and this medseg reads format 1; install"):
        read_bundle(model)


def test_an_unknown_key(model: Path) -> None:
    def add(content: dict[str, bytes]) -> None:
        content["model.json"] = json.dumps(json.loads(content["model.json"]) | {"run_this": "rm"}).encode()

    rewrite(model, add, reseal=True)
    with pytest.raises(ModelFileError, match=r"model\.json, `run_this`: .*; install the medseg that wrote it"):
        read_bundle(model)


def test_networks_of_several_kinds_are_no_file(tmp_path: Path) -> None:
    bundle = tiny_bundle(weights=2)
    mixed = Bundle(bundle.description, bundle.weights, "", mixed=(Kind("unet", {}), Kind("fcn8s", {})))
    with pytest.raises(ModelFileError, match="several kinds do not go into one model file"):
        write_bundle(tmp_path / "m.medseg", mixed)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["card.md", "model.json"])
def test_an_altered_member(model: Path, name: str) -> None:
    rewrite(model, lambda m: m.update({name: m[name].replace(b"tiny", b"huge")}))
    with pytest.raises(ModelFileError, match=f"altered or damaged .* {name} does not agree"):
        read_bundle(model)


def test_altered_weights(model: Path) -> None:
    rewrite(model, lambda m: m.update({"weights_0.safetensors": m["weights_0.safetensors"][:-4] + b"\0\0\0\1"}))
    with pytest.raises(ModelFileError, match=r"weights_0\.safetensors does not agree"):
        read_bundle(model)


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.safetensors",
        "../weights_1.safetensors",
        "/etc/card.md",
        "weights_0.pt",
        "data.pkl",
        "archive/data.pkl",
        "x/card.md",
        "..\\card.md",
        "C:\\card.md",
        "Card.md",
        "weights_١.safetensors",
        "weights_1.safetensors/",
    ],
)
def test_a_member_that_does_not_belong(model: Path, name: str) -> None:
    rewrite(model, lambda m: m.update({name: b"x"}))
    with pytest.raises(ModelFileError, match="which is not loaded"):
        read_bundle(model)


def test_a_name_that_ends_early(model: Path) -> None:
    rewrite(model, lambda m: m.update({"weights_1.safetensors_pkl": b"x"}))
    model.write_bytes(model.read_bytes().replace(b".safetensors_pkl", b".safetensors\0pkl"))
    with pytest.raises(ModelFileError, match="which is not loaded"):
        read_bundle(model)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    (tmp_path / "plain.medseg").write_bytes(pickle.dumps(Trap()))
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, buffer)
    (tmp_path / "torch.medseg").write_bytes(buffer.getvalue())
    with zipfile.ZipFile(tmp_path / "zipped.medseg", "w") as archive:
        archive.writestr("weights_0.safetensors", pickle.dumps(Trap()))
        archive.writestr("model.json", "{}")
        archive.writestr("card.md", "")
    for name in ("plain", "torch", "zipped"):
        with pytest.raises(ModelFileError):
            read_bundle(tmp_path / f"{name}.medseg")
    assert not (tmp_path / "sprung").exists()


def test_a_missing_or_double_member(model: Path) -> None:
    whole = model.read_bytes()
    rewrite(model, lambda m: m.pop("card.md"))
    with pytest.raises(ModelFileError, match="not a whole medseg model"):
        read_bundle(model)
    model.write_bytes(whole)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(model, "a") as archive:
        archive.writestr(entry("card.md"), "another")
    with pytest.raises(ModelFileError, match="not a whole medseg model"):
        read_bundle(model)
    model.write_bytes(whole)
    rewrite(model, lambda m: m.update({"weights_2.safetensors": m["weights_0.safetensors"]}), reseal=True)
    with pytest.raises(ModelFileError, match="not a whole medseg model"):
        read_bundle(model)


def test_a_compressed_member_is_refused(model: Path) -> None:
    content, _ = members(model)
    with zipfile.ZipFile(model, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(ModelFileError, match="not a medseg model"):
        read_bundle(model)


def test_an_unknown_version(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    object.__setattr__(bundle, "description", bundle.description.model_copy(update={"format": 2}))
    write_bundle(tmp_path / "m.medseg", bundle)
    with pytest.raises(ModelFileError, match="has format 2 and this medseg reads format 1"):
        read_bundle(tmp_path / "m.medseg")


def test_weights_of_another_network(tmp_path: Path) -> None:
    bundle = tiny_bundle()
    weights = dict(bundle.weights[0])
    weights.pop(next(iter(weights)))
    object.__setattr__(bundle, "weights", (weights,))
    with pytest.raises(ModelFileError, match="its weights do not fit a unet"):
        bundle.networks()


def test_the_card_says_what_a_user_must_know() -> None:
    card = model_card(
        "unet",
        "unet",
        tiny_plan(),
        SCHEME,
        "livers",
        12,
        3,
        {"liver": 0.9123, "tumour": float("nan")},
        "One | hospital.",
        "Doe 2020",
        "CC0",
    )
    for text in (
        "For research use",
        "liver (3), tumour (300)",
        "12 cases, 3 more",
        "| liver | 0.912 |",
        "CC0",
        "Doe 2020",
        "hospital",
    ):
        assert text in card
    assert "1 x 1.5 x 2 mm" in card


RULES = Postprocessing(rules={"liver": Rule(keep_largest=True), "tumour": Rule(smallest_volume=12.5)})


def test_what_was_chosen_on_the_validation_cases_travels_in_the_file(tmp_path: Path) -> None:
    bundle = tiny_bundle(weights=2)
    about = {
        "postprocessing": RULES,
        "temperature": [1.5, 1.25],
        "finish": {"dice": {"before": 0.8, "after": 0.9}},
        "started_from": Origin(model="big", sha256="ab" * 32),
    }
    object.__setattr__(bundle, "description", bundle.description.model_copy(update=about))
    write_bundle(tmp_path / "m.medseg", bundle)
    read = read_bundle(tmp_path / "m.medseg")
    assert {key: getattr(read.description, key) for key in about} == about
    assert read.temperatures == [1.5, 1.25]
    assert tiny_bundle(weights=2).temperatures == [1.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": [1.0, 1.0]}, "1 sets of weights and another number of temperatures"),
        ({"temperature": 0.0}, "`temperature"),
        ({"postprocessing": {"rules": {"liver": {"keep": 1}}}}, r"`postprocessing\.rules\.liver\.keep`"),
        ({"postprocessing": {"rules": {"spleen": {"keep_largest": True}}}}, "a rule for `spleen`, which the labels do not have"),
        ({"plan": tiny_plan(swaps=[(1, 3)])}, "swaps classes that the labels do not have"),
        ({"plan": tiny_plan().model_copy(update={"n_channels": 2})}, "another number of channels than of normalisations"),
    ],
)
def test_a_description_that_makes_no_sense(tmp_path: Path, changes: dict, message: str) -> None:
    bundle = tiny_bundle()
    object.__setattr__(bundle, "description", bundle.description.model_copy(update=changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic says what the test does on purpose
        write_bundle(tmp_path / "m.medseg", bundle)
    with pytest.raises(ModelFileError, match=message):
        read_bundle(tmp_path / "m.medseg")


def test_a_model_with_regions_has_an_output_for_each(tmp_path: Path) -> None:
    names = SCHEME.names
    scheme = LabelScheme(
        structures=SCHEME.structures, regions=[Region(name="all", structures=names), Region(name=names[1], structures=names[1:])]
    )
    read = read_bundle(write_tiny_model(tmp_path / "m.medseg", scheme=scheme))
    with torch.inference_mode():
        assert read.networks()[0](torch.rand(1, 1, 16, 16, 8)).shape == (1, 2, 16, 16, 8)


def test_the_card_says_what_was_chosen_and_where_it_started() -> None:
    scheme = LabelScheme(structures=SCHEME.structures, regions=[Region(name="both", structures=SCHEME.names)])
    card = model_card(
        "unet", "unet", tiny_plan(), scheme, "livers", 8, 2, {"both": 0.9},
        postprocessing=RULES, temperature=1.234, finish={"dice": {"before": 0.8, "after": 0.91}, "cross_entropy": {}},
        started_from=Origin(model="big", sha256="ab" * 32),
    )  # fmt: skip
    for text in (
        "| Regions | both: liver, tumour |",
        "| Postprocessing | liver: its largest piece only; tumour: no piece below 12.5 mm3 |",
        "| Temperature | 1.23 |",
        f"| Started from | big (sha256 {'ab' * 32}) |",
        "0.8000 | 0.9100",
    ):
        assert text in card
    plain = model_card("unet", "unet", tiny_plan(), SCHEME, "livers", 8, 2, {"liver": 0.9}, temperature=[1.0, 2.0])
    for text in ("| Postprocessing | none |", "| Temperature | 1, 2 |", "| Started from | random weights |"):
        assert text in plain
    assert "Regions" not in plain


def test_fingerprint_ranges_hold_no_cases() -> None:
    def voxels(low: float, high: float) -> Intensities:
        return Intensities(mean=5, std=1, quantiles=np.linspace(low, high, 100).tolist())

    def case(n: int, foreground: list[Intensities]) -> CaseFingerprint:
        return CaseFingerprint(
            shape=(n, 20, 5), spacing=(1.0, 1.0, float(n)), physical=True, zero_share=0, nonzero_box_share=1,
            nonzero_shape=(n, 20, 5), foreground=foreground, class_voxels=[5, 5],
        )  # fmt: skip

    cases = [case(10, [voxels(2, 8)]), case(30, [voxels(1, 11)]), case(20, [])]
    assert fingerprint_ranges(Fingerprint(channels=1, physical=True, cases=cases)) == {
        "cases": 3,
        "unit": "mm",
        "shape": [[10, 20, 5], [30, 20, 5]],
        "spacing": [[1.0, 1.0, 10.0], [1.0, 1.0, 30.0]],
        "foreground": [{"low": 1.0, "high": 11.0}],
    }


def test_air_is_what_is_darker_than_every_structure_of_enough_ct_cases() -> None:
    def case(lowest: float | None, ignored: int = 0) -> CaseFingerprint:
        inside = Intensities(mean=5, std=1, quantiles=np.linspace(0, 9, 100).tolist(), lowest=lowest)
        return CaseFingerprint(
            shape=(10, 10, 5), spacing=(1.0, 1.0, 1.0), physical=True, zero_share=0, nonzero_box_share=1,
            nonzero_shape=(10, 10, 5), foreground=[inside], class_voxels=[495 - ignored, 5],
        )  # fmt: skip

    def below(cases: list[CaseFingerprint], rule: object) -> list[float] | None:
        preprocessing = Preprocessing(physical=True, spacing=None, normalisation=[rule])  # type: ignore[list-item]
        return air_below(Fingerprint(channels=1, physical=True, cases=cases), preprocessing)

    ct, mr = FixedNormalisation(low=-100, high=300, mean=50, std=30), CaseNormalisation()
    enough = [case(-120.0 - n) for n in range(10)]
    assert below(enough, ct) == [-129.0 - 50.0]
    assert below(enough, mr) is None  # its intensities mean another thing in each scan
    assert below(enough[:9], ct) is None
    assert below([*enough, case(None)], ct) is None  # measured by an earlier version
    assert below([*enough, case(0.0, ignored=3)], ct) is None  # what is ignored may be of the structure
