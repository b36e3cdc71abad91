import os
import tomllib
from datetime import datetime
from pathlib import Path

import pytest

from api.tenants.keys import hash_of, new_key
from api.tenants.keys_file import KeysFileError, entry_text, read_keys_file
from api.tenants.tenant import Limits, Priority, Tenant

KEY = new_key()
HASH = f"sha256:{hash_of(KEY).hex()}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_an_empty_file_has_no_keys(file: Path) -> None:
    file.write_text("")
    assert read_keys_file(file) == []


def test_a_tenant_has_hashes_and_plain_keys(file: Path) -> None:
    file.write_text(f'[[tenant]]\nname = "a"\nhashes = ["{HASH}"]\nkeys = ["a key that somebody chose"]\n')
    [stored] = read_keys_file(file)
    assert stored.tenant == Tenant("a")
    assert [each.hash for each in stored.keys] == [hash_of(KEY), hash_of("a key that somebody chose")]
    assert stored.state(0) == "active"


def test_an_entry_is_read_as_it_was_written(file: Path) -> None:
    full = Tenant("a", 0.5, Priority.INTERACTIVE, Limits(1, 2, 3, 4), ('b "c"', "d:e"), is_admin=True)
    plain = Tenant("b")
    file.write_text(entry_text(full, KEY, 4e9) + entry_text(plain, new_key(), None))
    first, second = read_keys_file(file)
    assert (first.tenant, first.expires_at) == (full, 4e9)
    assert (second.tenant, second.expires_at) == (plain, None)
    assert first.keys[0].hash == hash_of(KEY)
    assert KEY not in file.read_text()
    assert tomllib.loads(entry_text(plain, KEY, None)) == {"tenant": [{"name": "b", "hashes": [HASH]}]}


def test_a_date_lasts_until_its_end(file: Path) -> None:
    file.write_text('[[tenant]]\nname = "a"\nexpires = 2030-01-15\n')
    assert read_keys_file(file)[0].expires_at == datetime(2030, 1, 16).timestamp()
    file.write_text('[[tenant]]\nname = "a"\nexpires = 9999-12-31\n')
    assert read_keys_file(file)[0].expires_at == datetime(9999, 12, 31).timestamp()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[tenant]", "is not TOML"),
        ("tenant = 1", "tenant: "),
        ("[[tenants]]\n", "tenants: Extra inputs"),
        ("[[tenant]]\n", r"tenant\[0\].name: Field required"),
        ('[[tenant]]\nname = "user:a"\n', r"tenant\[0\].name: 'user:a' is not a name"),
        ('[[tenant]]\nname = "a"\nwieght = 2\n', r"tenant\[0\].wieght: Extra inputs"),
        ('[[tenant]]\nname = "a"\nweight = 0\n', r"tenant\[0\].weight: a weight is a number"),
        ('[[tenant]]\nname = "a"\nmax_waiting = -1\n', r"tenant\[0\].max_waiting: "),
        ('[[tenant]]\nname = "a"\nadmin = "no"\n', r"tenant\[0\].admin: "),
        ('[[tenant]]\nname = "a"\npriority = "high"\n', r"tenant\[0\].priority: "),
        ('[[tenant]]\nname = "a"\nkeys = ["short"]\n', r"tenant\[0\].keys\[0\]: "),
        (
            '[[tenant]]\nname = "a"\nkeys = ["Schlüssel-short-0123456789"]\n',
            r"tenant\[0\].keys\[0\]: a key has printable",
        ),
        (
            '[[tenant]]\nname = "a"\nkeys = ["short-0123456789-0123456789 "]\n',
            r"tenant\[0\].keys\[0\]: a key has printable",
        ),
        ('[[tenant]]\nname = "a"\nexpires = 0001-01-01T00:00:00\n', "is not a time that this system"),
        ('[[tenant]]\nname = "a"\nexpires = 07:00:00\n', r"tenant\[0\].expires"),
        ('[[tenant]]\nname = "a"\nhashes = ["0123"]\n', r"tenant\[0\].hashes\[0\]: "),
        ('[[tenant]]\nname = "a"\n[[tenant]]\nname = "a"\n', "the name 'a' occurs twice"),
        (f'[[tenant]]\nname = "a"\nhashes = ["{HASH}"]\nkeys = ["{KEY}"]\n', "a key occurs twice"),
        ("\x00", "is not TOML"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_without_keys(file: Path, text: str, problem: str) -> None:
    file.write_text(text)
    with pytest.raises(KeysFileError, match=problem) as error:
        read_keys_file(file)
    assert "\n" not in str(error.value)
    assert "short" not in str(error.value)
    assert KEY not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for file in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(KeysFileError, match=r"cannot be read|is not a regular file"):
            read_keys_file(file)


def test_a_pipe_is_refused_and_not_waited_for(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(KeysFileError, match="is not a regular file"):
        read_keys_file(file)
