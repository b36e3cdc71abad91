"""Which of several GGUF files is meant: the parts of a split one are one model, and quantizations have labels."""

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
"""Quantizations in the order in which one is taken where nobody says which: four bits, more, fewer, unquantized."""

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
_LABEL = re.compile(
    r"(?<![a-z0-9])(?:UD-)?(?:I?Q\d(?:_[a-z0-9]+)+|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)(?![a-z0-9_])",
    re.IGNORECASE,
)


def first_files(files: Iterable[str]) -> list[str]:
    """Of the files of a folder or repository, the one that each model begins with, in order.

    Projectors of images (mmproj) and importance matrices (imatrix) are no models.
    """
    return sorted(file for file in files if file.endswith(".gguf") and not is_later_part(file) and _is_model(file))


def parts(file: str) -> list[str]:
    """All files of the model that this one belongs to."""
    match = _split(file)
    if match is None:
        return [file]
    return [f"{match['stem']}-{number:05}-of-{match['parts']}.gguf" for number in range(1, int(match["parts"]) + 1)]


def first_part(file: str) -> str:
    """What the model begins with that this file belongs to."""
    return parts(file)[0]


def is_later_part(file: str) -> bool:
    match = _split(file)
    return match is not None and int(match["part"]) > 1


def matching(files: Sequence[str], wanted: str) -> list[str]:
    """Those among the models' first files that `wanted` may mean: a file's own name, or a label such as Q4_K_M."""
    if wanted in files:
        return [wanted]
    if wanted.endswith(".gguf"):
        return []
    if labelled := [file for file in files if _label(file) == wanted.upper()]:
        return labelled
    word = re.compile(rf"(?<![a-z0-9]){re.escape(wanted)}(?![a-z0-9_])", re.IGNORECASE)
    return [file for file in files if word.search(_stem(file))]


def preferred(files: Sequence[str]) -> str | None:
    """The one to take where nobody says which; None where that would be a guess."""
    if len(files) == 1:
        return files[0]
    for label in PREFERRED:
        if found := matching(files, label):
            return found[0] if len(found) == 1 else None
    return None


def short_names(files: Sequence[str]) -> dict[str, str]:
    """What tells each of a folder's models from the others: its quantization's label, else its file's name."""
    counts = Counter(map(_label, files))
    return {file: label if (label := _label(file)) and counts[label] == 1 else file for file in files}


def listed(names: Iterable[str], limit: int = 12) -> str:
    """For a message of one line."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


def _split(file: str) -> re.Match[str] | None:
    """Of the name of a part, one of as many as it says."""
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
    return "imatrix" not in name or _LABEL.search(name) is not None  # which some models were quantized with
