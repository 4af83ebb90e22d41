"""Model files: what is written is what is read, and nothing else is ever loaded."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import SCHEME, tiny_bundle, tiny_plan, write_tiny_model

from medseg.core.errors import ModelFileError
from medseg.core.labels import LabelScheme, Region
from medseg.inference.bundle import Origin, read_bundle, write_bundle
from medseg.inference.card import fingerprint_ranges, model_card
from medseg.inference.postprocess import Postprocessing, Rule
from medseg.planning.fingerprint import CaseFingerprint, Fingerprint, Intensities


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model.medseg")


def members(path: Path) -> tuple[dict[str, bytes], bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}, archive.comment


def rewrite(path: Path, change: Callable[[dict[str, bytes]], object], keep_comment: bool = True) -> None:
    content, comment = members(path)
    change(content)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.comment = comment if keep_comment else b""


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


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file(model: Path, share: float) -> None:
    content = model.read_bytes()
    model.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelFileError, match=r"truncated or not a medseg model|altered"):
        read_bundle(model)


def test_any_flipped_byte_is_noticed(model: Path) -> None:
    content = model.read_bytes()
    for place in range(100, len(content) - 400, len(content) // 40):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        model.write_bytes(damaged)
        with pytest.raises(ModelFileError):
            read_bundle(model)


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
    "name", ["../../evil.safetensors", "/etc/card.md", "weights_0.pt", "data.pkl", "archive/data.pkl", "x/card.md"]
)
def test_a_member_that_does_not_belong(model: Path, name: str) -> None:
    rewrite(model, lambda m: m.update({name: b"x"}))
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
        archive.writestr("card.md", "another")
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
