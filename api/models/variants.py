"""Selects among several GGUF files. The parts of a split file are one model; quantizations have labels."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Final

PREFERRED: Final = (
    *("Q4_K_M", "Q4_K_S", "Q4_K_L", "Q4_K_XL", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "MXFP4"),
    *("Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "Q2_K"),
    *("BF16", "F16", "F32"),
)
"""Quantizations in order of preference, if the user gives none: four bits, more, fewer, unquantized."""

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
_LABEL = re.compile(
    r"(?<![a-z0-9])(?:UD-)?(?:I?Q\d(?:_[a-z0-9]+)+|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)(?![a-z0-9_])",
    re.IGNORECASE,
)


def first_files(files: Iterable[str]) -> list[str]:
    """The first file of each model among the files of a folder or repository, sorted.

    Image projectors (mmproj) and importance matrices (imatrix) are not models.
    """
    return sorted(file for file in files if file.endswith(".gguf") and not is_later_part(file) and _is_model(file))


def parts(file: str) -> list[str]:
    """All files of the model that this one belongs to."""
    match = _split(file)
    if match is None:
        return [file]
    return [f"{match['stem']}-{number:05}-of-{match['parts']}.gguf" for number in range(1, int(match["parts"]) + 1)]


def first_part(file: str) -> str:
    """The first file of the model that this one belongs to."""
    return parts(file)[0]


def is_later_part(file: str) -> bool:
    match = _split(file)
    return match is not None and int(match["part"]) > 1


def matching(files: Sequence[str], wanted: str) -> list[str]:
    """The models' first files that match `wanted`: a file's path, a label such as Q4_K_M, or a part of the name."""
    if wanted in files:
        return [wanted]
    if wanted.endswith(".gguf"):
        return []
    if labelled := [file for file in files if _label(file) == wanted.upper()]:
        return labelled
    word = re.compile(rf"(?<![a-z0-9]){re.escape(wanted)}(?![a-z0-9_])", re.IGNORECASE)
    return [file for file in files if word.search(_stem(file))]


def preferred(files: Sequence[str]) -> str | None:
    """The preferred one of several models; None if several are equally good."""
    if len(files) == 1:
        return files[0]
    for label in PREFERRED:
        if found := matching(files, label):
            return found[0] if len(found) == 1 else None
    return None


def short_names(files: Sequence[str]) -> dict[str, str]:
    """A unique short name for each model of a folder: the label of its quantization, or else its file."""
    counts = Counter(map(_label, files))
    return {file: label if (label := _label(file)) and counts[label] == 1 else file for file in files}


def listed(names: Iterable[str], limit: int = 12) -> str:
    """The names in one line, for a message; at most `limit` of them."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


def _split(file: str) -> re.Match[str] | None:
    """The match of a part's name; None if it is not a part or its number is out of range."""
    match = _SPLIT.fullmatch(file)
    return match if match and 1 <= int(match["part"]) <= int(match["parts"]) else None


def _label(file: str) -> str:
    found = _LABEL.findall(_stem(file))
    return str(found[-1]).upper() if found else ""


def _stem(file: str) -> str:
    match = _split(file)
    return match["stem"] if match else file.removesuffix(".gguf")


def _is_model(file: str) -> bool:
    name = _stem(PurePosixPath(file).name).lower()
    if "mmproj" in name:
        return False
    return "imatrix" not in name or _LABEL.search(name) is not None  # some quantized models have it in their name
