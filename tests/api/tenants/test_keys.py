import hmac

import pytest

from api.tenants import keys
from api.tenants.directory import Directory, Refusal
from api.tenants.keys_file import read_keys_file


def test_keys_have_256_random_bits_and_a_prefix() -> None:
    made = {keys.new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("sk-cortex-") and len(key) == len("sk-cortex-") + 43 for key in made)


def test_any_text_can_be_hashed() -> None:
    assert len({keys.hash_of(text) for text in ("", "a", "é", "\udc80")}) == 4


def test_hashes_are_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare_digest = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare_digest(one, other)

    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    right = keys.hash_of("the right key is here")
    similar = right[:-1] + bytes([right[-1] ^ 1])
    file.write_text(f'[[tenant]]\nname = "a"\nhashes = ["sha256:{similar.hex()}"]\n')
    assert len(read_keys_file(file)) == 1
    directory = Directory(file)
    directory.load()
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert directory.find("the right key is here") is Refusal.UNKNOWN
    assert compared == [(similar, right)], "hashes that begin alike are compared as a whole"
