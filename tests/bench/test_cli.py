"""The command `load` as a whole, against the fake server."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from typer.testing import CliRunner, Result

from bench import fairness
from bench.__main__ import app
from tests.bench.fakes import DONE, EVENTS, SECONDS, Script, content, finish, plain, role, sending, serving, usage

OK = sending(EVENTS, role(), content("one"), content(" two"), finish(), usage(130, 48, 13), DONE)


async def invoke(script: Script, *arguments: str) -> Result:
    async with serving(script) as server:
        command = ["load", "--url", server.url, "--settle", "0", *arguments]
        with trio.fail_after(SECONDS):
            return await trio.to_thread.run_sync(lambda: CliRunner().invoke(app, command))


def last_line(result: Result) -> dict[str, Any]:
    outcome = orjson.loads(result.stdout.splitlines()[-1])
    assert isinstance(outcome, dict)
    return outcome


async def test_the_last_line_is_the_summary() -> None:
    result = await invoke(OK, "--users", "2", "--requests", "5", "--label", "a test", "--repeat", "2")
    assert result.exit_code == 0, result.output
    outcome = last_line(result)
    assert outcome["label"] == "a test"
    assert outcome["model"] == "fake"
    assert (outcome["requests"], outcome["errors"], outcome["repeat"]) == (10, 0, 2)
    assert outcome["summary"]["requests"] == 5
    assert outcome["summary"]["completion_tokens"] == 5 * 48
    assert outcome["summary"]["cached_share"] == 0.1
    for name in ("tokens_per_s", "ttft_p50_s", "wall_s", "e2e_p99_s"):
        assert 0 < outcome["min"][name] <= outcome["summary"][name] <= outcome["max"][name]
    assert "a test: 10 requests" in result.stdout
    assert "ttft p50" in result.stdout


async def test_the_file_holds_every_record(tmp_path: Path) -> None:
    out = tmp_path / "results" / "run.json"
    result = await invoke(
        OK, "--workload", "burst", "--users", "3", "--api-key", "sesame", "--salt", "7", "--out", str(out)
    )
    assert result.exit_code == 0, result.output
    assert b"sesame" not in out.read_bytes()
    kept = orjson.loads(out.read_bytes())
    assert kept["summary"] == last_line(result)["summary"]
    assert kept["summary"]["wall_ratio"] > 0
    assert kept["command"].startswith("python -m bench")
    assert (kept["salt"], kept["settings"]["users"], kept["target"]["temperature"]) == (7, 3, 0.0)
    (repetition,) = kept["repetitions"]
    (alone,) = repetition["aside"]
    assert (alone["role"], alone["start"], alone["text"]) == ("alone", 0.0, "one two")
    assert len(repetition["records"]) == 3
    for record in repetition["records"]:
        assert alone["end"] <= record["start"] <= record["chunks"][0] <= record["chunks"][1] <= record["end"]


async def test_keys_of_tenants_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "WARM_UP_SECONDS", 0.0)
    out = tmp_path / "run.json"
    keys = "heavy=first-key, light=second-key"
    arguments = ["--workload", "weights", "--seconds", "0.2", "--users", "1", "--out", str(out)]
    result = await invoke(OK, *arguments, "--identify", "keys", "--tenant-keys", keys)
    assert result.exit_code == 0, result.output
    outcome = last_line(result)
    assert outcome["errors"] == 0
    assert outcome["summary"]["tokens_ratio"] > 0
    assert b"first-key" not in out.read_bytes()
    assert b"second-key" not in out.read_bytes()
    assert orjson.loads(out.read_bytes())["target"]["identify"] == "keys"


async def test_the_exit_code_is_1_if_every_request_failed() -> None:
    result = await invoke(sending(plain("500 No", b'{"error": {"message": "out of luck [x]"}}')), "--users", "2")
    assert result.exit_code == 1
    assert last_line(result)["errors"] == 2
    assert "2 x HTTP 500: out of luck [x]" in result.stdout


async def test_some_errors_are_reported_but_the_exit_code_is_0() -> None:
    answers = iter([sending(plain("500 No", b"no")), OK, OK])

    async def script(body: dict[str, Any], stream: trio.SocketStream) -> None:
        await next(answers)(body, stream)

    result = await invoke(script, "--users", "3")
    assert result.exit_code == 0
    assert last_line(result)["errors"] == 1


async def test_interference_against_a_server() -> None:
    async def script(body: dict[str, Any], stream: trio.SocketStream) -> None:
        await stream.send_all(EVENTS)
        if body["max_tokens"] == 400:
            while True:
                await stream.send_all(content("word "))
                await trio.sleep(0.002)
        await trio.sleep(0.03)
        await answer(body, stream)

    answer = sending(content("a"), finish(), usage(2500, 16), DONE)
    result = await invoke(script, "--workload", "interference", "--repeat", "2", "--time-limit", str(SECONDS))
    assert result.exit_code == 0, result.output
    outcome = last_line(result)
    assert (outcome["requests"], outcome["errors"]) == (16, 0)
    assert outcome["summary"]["aborted"] == 6
    assert outcome["summary"]["estimated"] == 6
    assert outcome["summary"]["idle_ttft_s"] >= 0.03
    assert outcome["summary"]["gap_s"] >= 0.002
    assert outcome["summary"]["gap_ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--url", "http://192.0.2.1/v1"], "--allow-remote"),
        (["--workload", "burst", "--requests", "2"], "--requests does not apply"),
        (["--workload", "trace", "--trace", "/nowhere.csv", "--model", "m"], "/nowhere.csv"),
        (["--out", "/dev/null/x.json"], "/dev/null"),
        (["--workload", "weights", "--identify", "keys", "--tenant-keys", "heavy=a"], "a key for light"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(arguments: list[str], error: str) -> None:
    result = CliRunner().invoke(app, ["load", *arguments])
    assert result.exit_code == 2
    assert error in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
