"""Read the similarity matrix that a sentence-transformers model card prints for its example sentences.

This project did not compute the matrix. Comparing an artifact with it can thus also reveal errors that this
project and its reference have in common.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from koe5_onnx import InputError

_ROUNDING_NOISE = 1e-5
"""Tolerance for fp32 arithmetic on other hardware, in addition to half a unit of the last printed digit."""
_INT8_TOLERANCE = 0.02
"""Tolerance for all precisions except fp32. If two embeddings of 1,024 dimensions have a cosine of 0.9995 to
their references, errors in random directions change their similarity by about 0.001, and errors in the worst
directions by 0.06."""


@dataclass(frozen=True)
class Card:
    """Example sentences of a model card and the similarities printed there."""

    sentences: Sequence[str]
    similarity: npt.NDArray[np.float64]
    """float64[n, n]: similarity of each pair of sentences."""
    decimals: int
    """Number of printed decimal places."""


def tolerance(precision: str, decimals: int) -> float:
    """Return the largest allowed difference between similarities of an artifact and those of a model card."""
    printed: float = 0.5 * 10**-decimals + _ROUNDING_NOISE
    return printed if precision == "fp32" else max(printed, _INT8_TOLERANCE)


def read_card(file: Path) -> Card:
    """Read a model card (Markdown with a Python example), or JSON with `sentences` and `similarity`.

    Raises:
        InputError: The file cannot be read, or has no sentences with a matrix of similarities.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error}). Expected a model card") from error
    if file.suffix == ".json":
        return _card_of_json(file, text)
    for code in re.findall(r"```(?:python|py)\s*\n(.*?)```", text, flags=re.DOTALL):
        sentences, printed = _sentences(code), _printed_matrix(code)
        if sentences and printed:
            return _card(file, sentences, printed)
    raise InputError(
        f"{file} has no similarities. Expected a Python example with a list of sentences "
        "and, in a comment, a square matrix of numbers"
    )


def _card_of_json(file: Path, text: str) -> Card:
    try:
        data = json.loads(text, parse_float=str, parse_int=str)
        sentences, printed = data["sentences"], data["similarity"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not a JSON object with sentences and similarity ({error!r}). Add what is missing"
        ) from error
    decimals = {"decimals": int(data["similarity_decimals"])} if "similarity_decimals" in data else {}
    return _card(file, sentences, printed, **decimals)


def _sentences(code: str) -> list[str]:
    """Return the first list of at least two string literals in Python code."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.List) and len(node.elts) >= 2:
            values = [item.value for item in node.elts if isinstance(item, ast.Constant)]
            texts = [value for value in values if isinstance(value, str)]
            if len(texts) == len(node.elts):
                return texts
    return []


def _printed_matrix(code: str) -> list[list[str]]:
    """Return the last matrix of the form [[...], [...]] in the comments of Python code, as printed."""
    comments = "\n".join(re.findall(r"^\s*#(.*)$", code, flags=re.MULTILINE))
    matrices = re.findall(r"\[\s*\[.*?\]\s*\]", comments, flags=re.DOTALL)
    rows = re.findall(r"\[([^\[\]]+)\]", matrices[-1]) if matrices else []
    return [re.findall(r"-?\d+\.\d+|-?\d+\.?", row) for row in rows]


def _card(file: Path, sentences: Sequence[str], printed: Sequence[Sequence[str]], decimals: int = 0) -> Card:
    size = len(sentences)
    if [len(row) for row in printed] != [size] * size:
        shape = f"{len(printed)} rows of {sorted({len(row) for row in printed})} numbers"
        raise InputError(f"{file} has {size} sentences but prints {shape}; expected {size} x {size}")
    digits = max(len(number.partition(".")[2]) for row in printed for number in row)
    return Card(sentences, np.array(printed, dtype=np.float64), decimals or digits)
