import stat
from pathlib import Path

from api.tenants.secret import credentials, make_secret, read_secret


def test_there_is_no_secret_before_a_server_makes_one() -> None:
    assert read_secret() is None
    assert credentials() == {}


def test_the_secret_is_private_and_stays_the_same(home: Path) -> None:
    secret = make_secret()
    assert make_secret() == secret == read_secret()
    assert credentials() == {"Authorization": f"Bearer {secret}"}
    assert stat.S_IMODE((home / "owner.secret").stat().st_mode) == 0o600
    assert [file.name for file in home.iterdir()] == ["owner.secret"]


def test_a_secret_that_others_could_read_is_replaced(home: Path) -> None:
    secret = make_secret()
    (home / "owner.secret").chmod(0o644)
    assert make_secret() != secret
    assert stat.S_IMODE((home / "owner.secret").stat().st_mode) == 0o600


def test_a_file_that_is_no_secret_is_replaced(home: Path) -> None:
    home.mkdir()
    for content in (b"", b"short\n", b"cortex-owner-\xff", b"cortex-owner-a\r\nHost: b"):
        (home / "owner.secret").write_bytes(content)
        assert read_secret() is None
        assert make_secret() == read_secret()
