"""The order of measurements, the blocks that count, and the command `compare` as a whole."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import orjson
import pytest
import trio
from trio.testing import MockClock
from typer.testing import CliRunner

from bench import page, tuning
from bench.__main__ import app
from bench.blocks import Limits, OutOfTimeError, block_of, measure
from bench.compare import best_of, context_needed, drafting_name, entries, specs_of
from bench.contestants import Entry, ForEntry
from bench.load import Repetition
from bench.peers import BARE, DRAFTING, TUNED, TUNING, Common
from bench.plans import Plan
from bench.records import BenchError
from bench.servers import Spec, Usage
from bench.table import Block
from bench.workloads import Settings
from tests.bench.fakes import free_port, record
from tests.bench.test_servers import FAKE

BASE = Settings(workload="trace", settle_s=0.0)


class FakeContestant:
    """Takes `seconds` of virtual time, and records a random number of each workload that it plays."""

    def __init__(self, name: str, seconds: float = 1.0, error: str | None = None) -> None:
        self.name = name
        self.seconds = seconds
        self.error = error
        self.numbers: list[float] = []

    async def rest(self) -> None:
        await trio.lowlevel.checkpoint()

    async def play(self, entry: Entry, rng: Random, time_limit: float) -> tuple[Repetition, Usage]:
        self.numbers.append(rng.random())
        await trio.sleep(min(self.seconds, time_limit))
        if self.error == "dead":
            raise BenchError("it died")
        slow = "timeout" if self.seconds > time_limit else None
        return Repetition([record(1.0, 2.0, tokens=2, error=slow or self.error)]), Usage(4.0, 100)


async def compared(*contestants: FakeContestant, repeat: int = 3, total: float = 1000.0) -> list[Block]:
    blocks: list[Block] = []
    found = entries("single,uniform:32", BASE)
    limits = Limits(block=10.0, total=total)
    await measure(contestants, found, repeat=repeat, seed=0, salt=1, limits=limits, on_block=blocks.append)
    return blocks


async def test_each_repetition_begins_with_another_server(autojump_clock: MockClock) -> None:
    ours, theirs = FakeContestant("ours"), FakeContestant("theirs")
    blocks = await compared(ours, theirs, repeat=2)
    assert [(block.repetition, block.workload, block.server) for block in blocks] == [
        (0, "single", "ours"),
        (0, "single", "theirs"),
        (0, "uniform:32", "ours"),
        (0, "uniform:32", "theirs"),
        (1, "single", "theirs"),
        (1, "single", "ours"),
        (1, "uniform:32", "theirs"),
        (1, "uniform:32", "ours"),
    ]
    assert ours.numbers == theirs.numbers  # the same texts
    assert len(set(ours.numbers)) == 4  # new ones each time
    assert {block.trouble for block in blocks} == {""}


async def test_a_server_that_is_too_slow_or_fails_does_not_repeat_a_workload(autojump_clock: MockClock) -> None:
    slow, dead = FakeContestant("slow", seconds=60.0), FakeContestant("dead", error="dead")
    blocks = await compared(slow, dead)
    assert len(slow.numbers) == len(dead.numbers) == 2
    troubles = {(block.server, block.trouble) for block in blocks}
    assert troubles == {("slow", "not done in 10 s: 1 of 1 requests failed: timeout"), ("dead", "it died")}


async def test_the_comparison_stops_at_its_time_limit(autojump_clock: MockClock) -> None:
    ours = FakeContestant("ours")
    with pytest.raises(OutOfTimeError, match="stopped after 3 s, in repetition 3 of 9"):
        await compared(ours, repeat=9, total=3.0)
    assert len(ours.numbers) == 4


def test_a_block_with_failures_does_not_count() -> None:
    good, bad = record(1.0, 2.0, tokens=4), record(1.0, error="HTTP 500: no")
    figures, trouble = block_of(Repetition([good], aside=[good]), Usage(2.0, 10))
    assert (trouble, figures["cpu_s_per_token"], figures["memory_bytes"]) == ("", 0.25, 10)
    figures, trouble = block_of(Repetition([good, bad], aside=[bad]), Usage(0.0, 0))
    assert trouble == "2 of 3 requests failed: HTTP 500: no"
    assert figures["cpu_s_per_token"] is None
    assert figures["memory_bytes"] is None


def test_workloads_are_parsed_from_names() -> None:
    found = entries("single,uniform:8,uniform:32", BASE)
    assert [(entry.name, entry.settings.users) for entry in found] == [
        ("single", 1),
        ("uniform:8", 8),
        ("uniform:32", 32),
    ]
    assert context_needed(found) == 512
    assert context_needed(entries("interference", BASE)) >= 2530 + 16


@pytest.mark.parametrize(
    ("names", "error"),
    [
        ("uniforms", "unknown workload uniforms"),
        ("uniform:x", "must be a number"),
        ("uniform,uniform", "repeats a name"),
        ("", "is empty"),
        ("single:3", "--users does not apply"),
        ("trace", "needs --trace"),
    ],
)
def test_invalid_workloads_are_refused(names: str, error: str) -> None:
    with pytest.raises(BenchError, match=error):
        entries(names, BASE)


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """The files that `make peers` builds, but empty."""
    for name in ("build/bin/llama-server", "venv/bin/python", "source/examples/server/server.py"):
        path = tmp_path / "peers" / name
        path.parent.mkdir(parents=True)
        path.touch()
    return tmp_path / "peers"


def plan(*servers: str, **more: tuple[str, ...]) -> Plan:
    return Plan(
        model_path=Path("/models/m.gguf"),
        servers=servers,
        others={},
        entries=(),
        extra={name.replace("_", "-"): flags for name, flags in more.items()},
        threads=3,
        repeat=1,
        seed=0,
        salt=0,
        limits=Limits(),
        out=Path("/nowhere"),
    )


def common(peers: Path, extra: dict[str, tuple[str, ...]]) -> Common:
    return Common(
        model_path=Path("/models/m.gguf"),
        threads=3,
        context=1024,
        scratch=peers,
        extra=extra,
        end_tokens=lambda: [2, 7],
        peers=peers,
    )


def test_servers_get_the_same_threads_and_context(peers: Path) -> None:
    wanted = plan("llama-server", TUNED, "llama-cpp-python", "example-server", BARE, llama_server=("--mlock",))
    given = common(peers, dict(wanted.extra))
    plain, tuned, python, example = specs_of(wanted, given, TUNING[0])
    assert [spec.name for spec in (plain, tuned, python, example)] == list(wanted.servers[:-1])
    text = " ".join(plain.command)
    assert text.endswith("-t 3 -np 32 -c 32768 --mlock")
    assert " ".join(tuned.command).endswith("-c 32768 -b 64 --kv-unified --cache-ram 8192")
    assert "--n_ctx 1024" in " ".join(python.command)
    config = orjson.loads((peers / "example-server.json").read_bytes())
    assert (config["model"]["n_ctx"], config["model"]["threads"]) == (32768, 3)
    assert plain.ignore_eos
    for spec in (python, example):
        assert not spec.ignore_eos
        assert spec.fields == {"logit_bias": {"2": -100, "7": -100}}
    assert len({spec.url for spec in (plain, tuned, python, example)}) == 4


def test_given_flags_replace_the_tuning(peers: Path) -> None:
    wanted = plan(TUNED, llama_server_tuned=("-b", "96"))
    (tuned,) = specs_of(wanted, common(peers, dict(wanted.extra)))
    assert tuned.command[-2:] == ("-b", "96")


def test_each_workload_has_the_flags_that_draft_best_for_it(peers: Path) -> None:
    rates = {"edit:8": {"--spec-type ngram-mod": 9.0, "--spec-type ngram-cache": 3.0}}
    rates |= {"rag:8": {"--spec-type ngram-mod": 8.0}, "edit:1": {"--spec-type ngram-simple": 5.0}}
    chosen = best_of(rates)
    specs = specs_of(plan(DRAFTING), common(peers, {}), drafting=chosen)
    assert [spec.name for spec in specs] == [f"{DRAFTING}-ngram-mod", f"{DRAFTING}-ngram-simple"]
    assert [spec.command[-2:] for spec in specs] == [("--spec-type", "ngram-mod"), ("--spec-type", "ngram-simple")]
    assert {drafting_name(flags) for flags in chosen.values()} == {spec.name for spec in specs}
    wanted = plan(DRAFTING, llama_server_drafts=("--spec-type", "ngram-cache"))
    (spec,) = specs_of(wanted, common(peers, dict(wanted.extra)))
    assert (spec.name, spec.command[-2:]) == (DRAFTING, ("--spec-type", "ngram-cache"))


async def test_the_best_flags_are_found_for_each_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try starts a server, which here is a fake. One of them ends at once."""
    started: list[str] = []

    def fake(common: Common, port: int, name: str, flags: tuple[str, ...]) -> Spec:
        started.append(flags[-1])
        dies = ["dies"] if flags[-1] == "ngram-mod" else []
        return Spec(name=name, url=f"http://127.0.0.1:{port}/v1", command=(sys.executable, str(FAKE), str(port), *dies))

    monkeypatch.setattr(tuning, "llama_server", fake)
    monkeypatch.setattr(tuning, "DRAFTING_FLAGS", (("--spec-type", "ngram-simple"), ("--spec-type", "ngram-mod")))
    lines: list[str] = []
    found = entries("edit:1,single", BASE)
    rates = await tuning.best_drafting(common(tmp_path, {}), found, tmp_path, 0, 0, 30.0, lines.append)
    assert started == ["ngram-simple", "ngram-mod"]
    assert set(rates) == {"edit:1", "single"}
    for by_flags in rates.values():
        assert set(by_flags) == {"--spec-type ngram-simple", "--spec-type ngram-mod"}
        assert by_flags["--spec-type ngram-mod"] == 0.0
    assert any("tokens/s of a stream" in line for line in lines)


async def test_a_contestant_may_have_a_server_for_each_workload() -> None:
    one, two = FakeContestant("one", 0.0), FakeContestant("two", 0.0)
    both = ForEntry("both", {"single": one, "uniform:32": two})
    blocks: list[Block] = []
    found = entries("single,uniform:32", BASE)
    await measure([both], found, repeat=1, seed=0, salt=1, limits=Limits(), on_block=blocks.append)
    assert [(block.server, block.trouble) for block in blocks] == [("both", ""), ("both", "")]
    assert (len(one.numbers), len(two.numbers)) == (1, 1)


def test_a_server_that_is_not_built_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="llama-server does not exist: run `make peers` first"):
        specs_of(plan("llama-server"), common(tmp_path, {}))


@pytest.fixture
def fake_url() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(FAKE), str(port)], stdout=subprocess.DEVNULL)
    yield f"http://127.0.0.1:{port}/v1"
    process.terminate()
    process.wait()


def test_the_command_writes_a_file_a_page_and_plots(fake_url: str, tmp_path: Path) -> None:
    out = tmp_path / "results"
    arguments = ["--servers", "", "--url", f"one={fake_url}", "--url", f"two={fake_url}", "--salt", "7"]
    result = CliRunner().invoke(
        app, ["compare", "--out", str(out), *arguments, "--workloads", "single,uniform:2", "--repeat", "2"]
    )
    assert result.exit_code == 0, result.output
    kept = orjson.loads((out / "comparison.json").read_bytes())
    assert [server["name"] for server in kept["servers"]] == ["one", "two"]
    assert len(kept["blocks"]) == 8
    assert {block["trouble"] for block in kept["blocks"]} == {""}
    assert (kept["salt"], kept["repeat"], kept["cut_short"]) == (7, 2, "")
    assert "tokens/s" in result.stdout
    assert "8 of 8: " in result.stderr
    assert b"data:image/png;base64," in (out / "report.html").read_bytes()
    assert (out / "ttft_p99_s.png").read_bytes().startswith(b"\x89PNG")

    again = CliRunner().invoke(app, ["page", str(out / "comparison.json"), "--out", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "report.html").read_bytes() == (out / "report.html").read_bytes()


def test_a_page_shows_errors_and_works_without_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda _: None)
    good = Block("<ours>", "single", 0, {"tokens_per_s": 10.0, "memory_bytes": 2.0**20, "wall_s": 0.5})
    bad = replace(good, server="theirs", trouble="HTTP 500: <no>")
    machine = {"processor": "a processor", "cpus": 2, "memory_bytes": 2**30, "system": "a system"}
    head = {"model": "m", "threads": 2, "repeat": 1, "started": "today", "command": "bench", "machine": machine}
    names = [{"name": name, "note": "", "command": ""} for name in ("<ours>", "theirs")]
    document = {**head, "cut_short": "enough", "servers": names, "tuning_tokens_per_s": {"-b 64": 9.0}}
    (only,) = page.write({**document, "blocks": [vars_of(good), vars_of(bad)]}, tmp_path)
    text = only.read_text()
    assert "HTTP 500: &lt;no&gt;" in text
    assert "&lt;ours&gt;" in text
    assert "<no>" not in text
    assert "10.0" in text
    assert "Not complete: enough" in text
    assert "No plots" in text


def vars_of(block: Block) -> dict[str, object]:
    return {
        "server": block.server,
        "workload": block.workload,
        "repetition": block.repetition,
        "figures": block.figures,
        "trouble": block.trouble,
    }


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--servers", "nobody"], "unknown server nobody"),
        (["--servers", ""], "is empty"),
        (["--servers", "cortex,cortex"], "repeats a name"),
        (["--url", "http://127.0.0.1/v1"], "use NAME=VALUE"),
        (["--url", "far=http://192.0.2.1/v1"], "--allow-remote"),
        (["--workloads", "nothing"], "unknown workload nothing"),
        (["--model", "/nowhere.gguf"], "/nowhere.gguf"),
        (["--workloads", "trace", "--trace", "/nowhere.csv"], "/nowhere.csv"),
        (["--out", "/dev/null/x"], "/dev/null"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(arguments: list[str], error: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert error in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_file_that_is_not_a_comparison_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    result = CliRunner().invoke(app, ["page", str(tmp_path / "x.json")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_a_variant_is_cortex_with_other_flags(peers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It also has its own home, because it runs beside the others."""
    monkeypatch.setattr(sys, "executable", str(peers / "python"))
    (peers / "cortex").touch()
    flags = ("--kv-layout", "pool")
    wanted = replace(plan("cortex", "pooled"), variants={"pooled": flags})
    plain, pooled = specs_of(wanted, common(peers, {}))
    assert [spec.name for spec in (plain, pooled)] == ["cortex", "pooled"]
    assert pooled.command[-2:] == flags
    assert flags[0] not in plain.command
    assert plain.environment["CORTEX_HOME"] != pooled.environment["CORTEX_HOME"]
