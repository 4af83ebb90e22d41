"""Letters as LaTeX has them: how each is written, how wide it is, and what it needs."""

from __future__ import annotations

import re
import unicodedata

NO_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # XML, and so Excel, cannot hold these

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': "''", "[": "{[}", "]": "{]}", "−": "$-$", "–": "--", "—": "---", "\u2010": "-", "\u2011": "-", "•": r"\textbullet{}",
    "×": r"$\times$", "²": r"\textsuperscript{2}", "³": r"\textsuperscript{3}", "°": r"\textdegree{}", "·": r"$\cdot$",
    "≤": r"$\le$", "≥": r"$\ge$", "≈": r"$\approx$", "±": r"$\pm$", "∞": r"$\infty$", "√": r"$\surd$",
    "→": r"$\to$", "←": r"$\leftarrow$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "µ": r"\textmu{}", "€": r"\texteuro{}", "…": r"\ldots{}", "‘": "`", "’": "'", "“": "``", "”": "''",
    "\u00a0": "~", "\u202f": r"\,", "\u2009": r"\,", "\n": " ", "\r": " ", "\t": " ", "\ufffd": "?",
}  # fmt: skip
GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta", "ι": "iota",
    "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau",
    "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda",
    "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
LATEX |= {letter: rf"$\{name}$" for letter, name in GREEK.items()}
LATIN = re.compile("[\x00-\u017e]")  # what pdfLaTeX puts together itself
ONLY_T1 = frozenset("ÐðÞþŊŋĐđ«»‹›„‚")

# How wide a letter is, in em of Computer Modern Roman, rounded up; any other of small letters is 0.56.
GROUPS = (
    (0.3, "ijl.,;:'|![]"), (0.4, "rstfzce()-I "), (0.51, "0123456789ago"), (0.79, "ABCDEFGHKLNOPQRTUVXYZ"),
    (0.84, "mw%+=<>−±×≤≥&@"), (1.03, "MW…—"),
)  # fmt: skip
WIDTHS = {letter: width for width, letters in GROUPS for letter in letters}
OTHER, WIDE, FIRST_WIDE = 0.56, 1.0, 0x2E80


def escape(text: str) -> str:
    """Any text as LaTeX that prints it."""
    text = unicodedata.normalize("NFC", NO_CHARACTER.sub("\ufffd", str(text)))  # file names of a Mac hold accents apart
    return "".join(LATEX.get(letter, letter) for letter in re.sub("-(?=-)", "-\u200b", text)).replace("\u200b", "{}")


def width_of(text: str, em: float) -> float:
    """How wide a text is at most, in the unit of `em`."""
    return em * sum(WIDTHS.get(letter, OTHER if ord(letter) < FIRST_WIDE else WIDE) for letter in text)


def needed(text: str) -> str:
    """What a text with letters that pdfLaTeX does not have by itself needs, in words; empty for any other."""
    letters = set(unicodedata.normalize("NFC", text))
    if any(letter not in LATEX and letter not in ONLY_T1 and not LATIN.match(letter) for letter in letters):
        return "XeLaTeX or LuaLaTeX with a font that has all letters of its names"
    return r"\usepackage[T1]{fontenc} for letters of its names" if letters & ONLY_T1 else ""
