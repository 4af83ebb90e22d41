"""Coded terms of structures: the label scheme's own, else SNOMED CT's by name, else a local one.

No code is written here: they come from the dictionaries of the DICOM standard that pydicom carries (PS3.16).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from medseg.core.errors import ConfigError
from medseg.core.labels import Structure
from medseg.io.derived import LONG, SHORT, shorten

LOCAL_SCHEME = "99MEDSEG"

# A structure's name is one of these if it has the same words, in any order: upper_lobe_of_lung, lung upper lobe.
_NAMED = """
AbdominalAorta AdiposeTissue AdrenalGland Amygdala Aorta Artery AscendingAorta Bladder BloodVessel Bone BrachiocephalicTrunk
BrachiocephalicVein Brain BrainStem Breast Bronchus C1Vertebra C2Vertebra C3Vertebra C4Vertebra C5Vertebra C6Vertebra C7Vertebra
Cartilage CaudateNucleus Cerebellum CerebrospinalFluid Clavicle Colon CommonCarotidArtery CommonIliacArtery CommonIliacVein
CorpusCallosum CostalCartilage Cyst DescendingAorta Diaphragm Duodenum Edema Esophagus Eye Femur Fibula FourthVentricle
FrontalLobe Gallbladder GlobusPallidus GrayMatter Heart Hemorrhage HepaticVein Hippocampus Humerus IliacArtery IliacVein
InferiorVenaCava Insula InternalJugularVein Kidney L1Vertebra L2Vertebra L3Vertebra L4Vertebra L5Vertebra Larynx LateralVentricle
LeftAtrium LeftVentricle Lens Lesion Liver LowerLobeOfLung Lung LymphNode Mandible Maxilla Meniscus Metastasis Midbrain
MiddleLobeOfRightLung Necrosis Neoplasm Nodule NucleusAccumbens OccipitalLobe OpticChiasm OpticNerve Ovary Pancreas ParietalLobe
ParotidGland Patella Pericardium PeripheralZoneOfTheProstate PleuralEffusion PortalVein Prostate PulmonaryArtery PulmonaryVein
Putamen Rectum Rib RightAtrium RightVentricle Sacrum Scapula SeminalVesicle SkeletalMuscle Skin Skull SmallIntestine SpinalCord
Spleen Sternum Stomach SubclavianArtery SubmandibularGland SubstantiaNigra SuperiorVenaCava T10Vertebra T11Vertebra T12Vertebra
T1Vertebra T2Vertebra T3Vertebra T4Vertebra T5Vertebra T6Vertebra T7Vertebra T8Vertebra T9Vertebra TemporalLobe Testis Thalamus
ThirdVentricle Thrombus Thymus Thyroid Tibia Tongue Tooth Trachea Tumor Ulna UpperLobeOfLung Ureter Urethra Uterus Vagina Vein
WhiteMatter"""
KEYWORDS = _NAMED.split()
SYNONYMS = {
    "urinary bladder": "Bladder", "small bowel": "SmallIntestine", "thyroid gland": "Thyroid", "fat": "AdiposeTissue",
    "heart atrium left": "LeftAtrium", "heart atrium right": "RightAtrium", "heart ventricle left": "LeftVentricle",
    "heart ventricle right": "RightVentricle", "right lung middle lobe": "MiddleLobeOfRightLung", "caudate": "CaudateNucleus",
    "pallidum": "GlobusPallidus", "accumbens": "NucleusAccumbens", "csf": "CerebrospinalFluid", "gallbladder": "Gallbladder",
    "gall bladder": "Gallbladder", "muscle": "SkeletalMuscle", "prostate peripheral zone": "PeripheralZoneOfTheProstate",
}  # fmt: skip
SPELLINGS = {
    "vertebrae": "vertebra", "tumour": "tumor", "oedema": "edema", "oesophagus": "esophagus", "haemorrhage": "hemorrhage",
    "grey": "gray", "lungs": "lung", "kidneys": "kidney", "lesions": "lesion", "nodules": "nodule", "metastases": "metastasis",
}  # fmt: skip
UNHEARD = {"of", "the", "structure"}
ABNORMAL = {
    "tumor", "neoplasm", "lesion", "nodule", "metastasis", "cyst", "edema", "necrosis", "necrotic", "hemorrhage", "thrombus",
    "cancer", "carcinoma", "infarct", "abscess",
}  # fmt: skip
TISSUES = {"fat", "adipose", "muscle", "matter", "tissue", "cartilage"}


@dataclass(frozen=True)
class Terms:
    """What a structure is, in codes: the category, the thing itself, and its side of the body where that is not part of it."""

    category: Code
    kind: Code
    side: Code | None = None


def find_terms(structure: Structure) -> Terms:
    """The coded terms of a structure. A local code is a function of the structure's name alone.

    Raises: ConfigError where the label scheme's code lacks a part.
    """
    words = _words(structure.name)
    if structure.code is not None:
        kind = _stated(structure)
        return Terms(_category(words | _words(kind.meaning)), kind)
    if keyword := _names().get(words):
        return Terms(_category(words), getattr(codes.SCT, keyword))
    sides = words & {"left", "right"}
    if len(sides) == 1 and (keyword := _names().get(words - sides)):
        return Terms(_category(words), getattr(codes.SCT, keyword), getattr(codes.SCT, min(sides).title()))
    return Terms(_category(words), _local(structure.name))


def _stated(structure: Structure) -> Code:
    code = structure.code or {}
    if missing := [part for part in ("scheme", "value", "meaning") if not code.get(part)]:
        raise ConfigError(
            f"the code of the structure `{structure.name}` has no `{missing[0]}`; give it a scheme, a value and a meaning."
        )
    return Code(code["value"], shorten(code["scheme"], SHORT), shorten(code["meaning"], LONG))


def _local(name: str) -> Code:
    value = hashlib.sha256(" ".join(name.lower().split()).encode()).hexdigest()[:SHORT]
    return Code(value, LOCAL_SCHEME, shorten(name, LONG))


def _category(words: frozenset[str]) -> Code:
    if words & ABNORMAL:
        return codes.SCT.MorphologicallyAbnormalStructure
    return codes.SCT.Tissue if words & TISSUES else codes.SCT.AnatomicalStructure


def _names() -> dict[frozenset[str], str]:
    return {_words(keyword): keyword for keyword in KEYWORDS} | {_words(name): k for name, k in SYNONYMS.items()}


def _words(name: str) -> frozenset[str]:
    """The words of a name, whatever parts them: L1Vertebra, vertebrae_L1 and "vertebra L1" have the same."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W_]+", parted.lower())
    return frozenset(SPELLINGS.get(word, word) for word in words) - UNHEARD
