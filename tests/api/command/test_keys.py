"""`cortex keys` and `cortex usage`, without a server."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from api.command import cli
from api.command.keys import _names
from api.tenants.database import database
from api.tenants.directory import Directory, Refusal
from api.tenants.keys import hash_of
from api.tenants.keys_file import read_keys_file
from api.tenants.tenant import Limits, Priority, Tenant
from api.tenants.usage import UsageRow, Used, write

Cortex = Callable[..., tuple[int, str, str]]
NAMES = ["name", "state", "admin", "weight", "priority", "models", "max_waiting", "max_concurrent"]


@pytest.fixture
def cortex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cortex:
    """Runs the command. Returns its exit code, stdout and stderr."""
    monkeypatch.setenv("CORTEX_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cortex", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def find(key: str) -> Tenant | Refusal:
    directory = Directory()
    directory.load()
    try:
        return directory.find(key)
    finally:
        directory.close()


def test_a_key_is_shown_once_and_works(cortex: Cortex) -> None:
    assert cortex("keys", "list") == (0, "There are no keys; 'cortex keys add NAME' adds one.\n", "")
    code, out, err = cortex("keys", "add", "alice")
    assert code == 0
    key = out.strip()
    assert find(key) == Tenant("alice")
    assert "cannot be shown again" in err
    assert key not in err
    shown = "".join(cortex("keys", "list")[1:]) + "".join(cortex("keys", "list", "--json")[1:])
    assert key not in shown
    assert hash_of(key).hex() not in shown
    assert f"...{key[-4:]}" in shown


def test_every_setting_is_stored_and_listed(cortex: Cortex) -> None:
    options = (
        "--weight=2.5 --priority=batch --models=a,b --models=c --expires=2100-01-01T00:00:00+00:00 --admin"
        " --max-waiting=1 --max-concurrent=2 --requests-per-minute=3 --tokens-per-minute=4"
    )
    _, key, _ = cortex("keys", "add", "alice", *options.split())
    limits = Limits(1, 2, 3, 4)
    assert find(key.strip()) == Tenant("alice", 2.5, Priority.BATCH, limits, ("a", "b", "c"), is_admin=True)
    [row] = json.loads(cortex("keys", "list", "--json")[1])
    assert [row[name] for name in NAMES] == ["alice", "active", True, 2.5, "batch", ["a", "b", "c"], 1, 2]
    _, table, _ = cortex("keys", "list")
    assert "active, admin" in table
    assert "1 waiting, 2 concurrent, 3 requests/min, 4 tokens/min" in table
    cortex("keys", "edit", "alice", "--no-admin", "--models=all", "--max-waiting=default", "--expires=never")
    assert find(key.strip()) == Tenant("alice", 2.5, Priority.BATCH, Limits(None, 2, 3, 4))
    assert json.loads(cortex("keys", "list", "--json")[1])[0]["expires"] is None


def test_keys_are_rotated_and_revoked(cortex: Cortex) -> None:
    first = cortex("keys", "add", "alice")[1].strip()
    second = cortex("keys", "rotate", "alice", "--keep=12h")[1].strip()
    assert find(first) == find(second) == Tenant("alice")
    third = cortex("keys", "rotate", "alice")[1].strip()
    assert (find(first), find(second), find(third)) == (Refusal.REVOKED, Refusal.REVOKED, Tenant("alice"))
    code, out, _ = cortex("keys", "revoke", "alice")
    assert (code, find(third)) == (0, Refusal.REVOKED)
    assert "'cortex keys rotate alice' makes a new one" in out
    assert json.loads(cortex("keys", "list", "--json")[1])[0]["keys"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("add a:b", 2, "NAME: 'a:b' is not a name"),
        ("add a --weight=0", 2, "--weight: a weight is a number from 0.01 to 1000"),
        ("add a --priority=high", 2, "--priority: 'high' is not one of interactive, default, batch"),
        ("add a --models=a,,b", 2, "--models: the name of a model is empty"),
        ("add a --expires=soon", 2, "--expires: 'soon' is neither a time from now"),
        ("add a --expires=2020-01-01", 2, "--expires: '2020-01-01' is in the past"),
        ("add a --max-waiting=-1", 2, "--max-waiting: '-1' is neither a whole number"),
        ("add alice", 1, "alice exists already; 'cortex keys edit alice' changes it"),
        ("edit alice", 2, "give at least one option to change"),
        ("edit bob --weight=1", 1, "there is no 'bob'; 'cortex keys list' shows the names"),
        ("rotate alice --keep=soon", 2, "--keep: 'soon' is not a time"),
        ("revoke bob", 1, "there is no 'bob'"),
    ],
)
def test_errors_are_one_line(cortex: Cortex, arguments: str, code: int, message: str) -> None:
    cortex("keys", "add", "alice")
    found, out, err = cortex("keys", *arguments.split())
    assert (found, out) == (code, "")
    assert err.startswith("cortex: ")
    assert message in err
    assert err.count("\n") == 1
    assert len(json.loads(cortex("keys", "list", "--json")[1])) == 1


def test_a_database_that_cannot_be_used_is_one_line(cortex: Cortex, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a folder")
    code, _, err = cortex("keys", "list")
    assert code == 1
    assert err.endswith("cortex.db cannot be used: File exists\n")
    assert err.count("\n") == 1


def test_an_entry_for_a_keys_file_is_printed_and_not_stored(cortex: Cortex, tmp_path: Path) -> None:
    code, out, err = cortex("keys", "add", "alice", "--weight=2", "--print-toml")
    key = err.splitlines()[0]
    assert code == 0
    assert key not in out
    (tmp_path / "keys.toml").write_text(out)
    [stored] = read_keys_file(tmp_path / "keys.toml")
    assert (stored.tenant, stored.keys[0].hash) == (Tenant("alice", 2.0), hash_of(key))
    assert json.loads(cortex("keys", "list", "--json")[1]) == []


def test_names_are_completed(cortex: Cortex, tmp_path: Path) -> None:
    assert _names("al") == []
    assert not (tmp_path / "home").exists(), "completion makes no files"
    for name in ("alice", "alan", "bob"):
        cortex("keys", "add", name)
    assert _names("al") == ["alan", "alice"]


def test_usage_is_shown_by_key_model_and_day(cortex: Cortex) -> None:
    assert cortex("usage") == (0, "Nothing has been used yet.\n", "")
    assert cortex("usage", "--csv") == (0, "key,requests,prompt_tokens,cached_tokens,answer_tokens\n", "")
    rows = [
        UsageRow("2030-01-01", "alice", "a", Used(1, 2000, 3, 4)),
        UsageRow("2030-01-01", 'user:"b"', "a", Used(1, 1, 1, 1)),
        UsageRow("2030-01-02", "alice", "c", Used(1, 1, 1, 1)),
    ]
    with database() as connection:
        write(connection, rows)
    lines = cortex("usage", "--csv")[1].splitlines()
    assert lines[1:] == ["alice,2,2001,4,5", '"user:""b""",1,1,1,1']
    assert cortex("usage", "--by=model", "--csv")[1].splitlines()[1:] == ["a,2,2001,4,5", "c,1,1,1,1"]
    assert cortex("usage", "--by=day", "--csv")[1].splitlines()[1:] == ["2030-01-01,2,2001,4,5", "2030-01-02,1,1,1,1"]
    table = cortex("usage", "--by=model")[1].splitlines()
    assert table[0].split() == ["MODEL", "REQUESTS", "PROMPT", "TOKENS", "CACHED", "ANSWER", "TOKENS"]
    assert table[1].split() == ["a", "2", "2,001", "4", "5"]
    assert cortex("usage", "--by=week")[0] == 2
