"""Small GGUF files."""

import struct
from collections.abc import Sequence
from pathlib import Path

F32, Q4_0, UNKNOWN = 0, 2, 999


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(
    tensors: Sequence[tuple[Sequence[int], int, int]] = (((64, 2), Q4_0, 0),),
    *,
    version: int = 3,
    alignment: int | None = None,
    data: int = 72,
    template: str | None = None,
) -> bytes:
    """A GGUF file with tensors (dimensions, type, offset), metadata of many types, and `data` bytes of data."""
    values = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.context_length") + struct.pack("<II", 4, 512),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("") + text("bc"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0, 1, 2),
        text("tokenizer.ggml.add_bos_token") + struct.pack("<I?", 7, True),
    ]
    if alignment is not None:
        values.append(text("general.alignment") + struct.pack("<II", 4, alignment))
    if template is not None:
        values.append(text("tokenizer.chat_template") + struct.pack("<I", 8) + text(template))
    infos = [
        text(f"blk.{i}.weight") + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
        for i, (sizes, kind, offset) in enumerate(tensors)
    ]
    header = struct.pack("<4sIQQ", b"GGUF", version, len(infos), len(values)) + b"".join(values + infos)
    return header + bytes(-len(header) % (alignment or 32)) + bytes(data)


def write(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content or gguf())
    return path
