"""The files around the code: metadata, licence, changelog, wheel, container image, shell completion."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from datetime import date
from email.parser import Parser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from api.command import completion
from api.flags import DEFAULT_PORT

ROOT: Final = Path(__file__).parents[1]
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: Final[dict[str, Any]] = PYPROJECT["project"]
PACKAGES: Final[list[str]] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
SECONDS: Final = 60
MODEL: Final = "smollm2:135m"


# -- licence and changelog ---------------------------------------------------------------------------------------------


def test_the_licence_is_the_full_text_of_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
    for number in range(1, 10):
        assert re.search(rf"^   {number}\. [A-Z]", text, re.MULTILINE), f"section {number}"
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", text, re.MULTILINE)
    assert versions[0][0] == PROJECT["version"]
    numbers = [tuple(map(int, version.split("."))) for version, _ in versions]
    dates = [date.fromisoformat(day) for _, day in versions]
    assert numbers == sorted(set(numbers), reverse=True)
    assert dates == sorted(dates, reverse=True)
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# -- the container image -----------------------------------------------------------------------------------------------


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of the Dockerfile, by stage: their names and arguments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append((name, arguments.strip()))
    return found


def arguments_of(name: str) -> str:
    """The arguments of an instruction that the last stage has once."""
    (arguments,) = [arguments for each, arguments in stages()[-1] if each == name]
    return arguments


def copied() -> list[str]:
    """The files and folders of the repository that the Dockerfile copies."""
    words = [arguments.split() for stage in stages() for name, arguments in stage if name == "COPY"]
    return [path for *paths, _ in words if not paths[0].startswith("--from=") for path in paths]


def program(name: str) -> Path:
    """A program that is installed beside this Python, or on the PATH."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found, f"{name} is missing: 'make install' installs it"
    return Path(found)


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([program("hadolint"), ROOT / "Dockerfile"], capture_output=True, text=True, timeout=SECONDS)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


def test_the_dockerfile_copies_files_of_the_repository() -> None:
    assert copied()
    assert [path for path in copied() if not (ROOT / path).exists()] == []


def test_the_dockerignore_lets_through_what_the_dockerfile_copies() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())


def test_the_base_images_have_versions_and_a_python_that_is_supported() -> None:
    for stage in stages():
        image = stage[0][1].split()[0]
        match = re.fullmatch(r"python:(3\.\d+)-slim", image)
        assert match, image
        assert _version(match[1]) >= _version(PROJECT["requires-python"].removeprefix(">="))


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_the_container_does_not_run_as_root() -> None:
    assert int(arguments_of("USER")) > 0


def test_the_container_exposes_the_default_port() -> None:
    assert int(arguments_of("EXPOSE")) == DEFAULT_PORT


def test_the_volume_is_the_home_of_cortex() -> None:
    variables = dict(arguments.split("=", 1) for name, arguments in stages()[-1] if name == "ENV")
    assert variables["CORTEX_HOME"] == arguments_of("VOLUME")


def test_the_container_starts_a_command_that_exists() -> None:
    arguments: list[str] = [*json.loads(arguments_of("ENTRYPOINT")), *json.loads(arguments_of("CMD"))]
    assert arguments.pop(0) in PROJECT["scripts"]
    assert arguments[-1] == MODEL
    done = subprocess.run(
        [sys.executable, "-m", "api", *arguments, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr


def test_the_image_installs_extras_that_exist() -> None:
    runs = " ".join(arguments for name, arguments in stages()[0] if name == "RUN")
    extras = re.findall(r"'\.\[(.*?)\]'", runs)
    assert extras
    assert set(",".join(extras).split(",")) <= set(PROJECT["optional-dependencies"])


class Health(BaseHTTPRequestHandler):
    """Answers GET /healthz with the status that the server has."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_succeeds_while_the_server_is_ready(status: int, code: int) -> None:
    handler = type("Handler", (Health,), {"status": status})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        done = _check_health(server.server_port)
        thread.join(SECONDS)
    assert done.returncode == code, done.stderr


def test_the_health_check_fails_without_a_server() -> None:
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        port = server.server_port
    assert _check_health(port).returncode != 0


def _check_health(port: int) -> subprocess.CompletedProcess[str]:
    command = json.loads(arguments_of("HEALTHCHECK").partition(" CMD ")[2])
    assert command[:2] == ["python", "-c"]
    assert str(DEFAULT_PORT) in command[2]
    code = command[2].replace(str(DEFAULT_PORT), str(port))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)


# -- the wheel ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """A wheel built from no more than the Dockerfile copies."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in copied():
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, source / path, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copyfile(ROOT / path, source / path)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target],
        cwd=source, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl")
    with zipfile.ZipFile(built) as file:
        yield file


def test_the_wheel_says_that_its_packages_are_typed(wheel: zipfile.ZipFile) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel.namelist())


def test_the_wheel_has_every_module(wheel: zipfile.ZipFile) -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.relative_to(ROOT).parts[:2] != ("bench", "micro")
    }
    assert {name for name in wheel.namelist() if name.endswith(".py")} == modules


def test_the_wheel_has_the_web_page(wheel: zipfile.ZipFile) -> None:
    names = [name.removeprefix("api/http/page/") for name in wheel.namelist() if name.startswith("api/http/page/")]
    assert {"index.html", "LICENSES.txt"} <= set(names)
    assert {Path(name).suffix for name in names if name.startswith("assets/")} == {".css", ".js", ".svg"}


def test_the_wheel_has_the_licence_and_the_metadata(wheel: zipfile.ZipFile) -> None:
    folder = f"cortex_server-{PROJECT['version']}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


# -- shell completion --------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell with a `cortex` command and a folder of models."""
    for name in ("llama3.2/1b", "llama3.2/3b", "owner/small"):
        folder = tmp_path / "home" / "models" / name
        folder.mkdir(parents=True)
        (folder / "model.gguf").write_text("completion does not read it")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "cortex"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m api "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "CORTEX_HOME": str(tmp_path / "home")}


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)


def completions(environment: dict[str, str], *words: str) -> list[str]:
    """The completions of the last word, by the variables that bash sets."""
    asked = {"_CORTEX_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = run(environment | asked, "cortex")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_bash_completes_subcommands(environment: dict[str, str]) -> None:
    assert completions(environment, "cortex", "s") == ["serve", "stop"]
    assert completions(environment, "cortex", "models", "") == ["list", "get", "remove", "import"]


def test_bash_completes_flags_and_their_values(environment: dict[str, str]) -> None:
    assert completions(environment, "cortex", "run", "--kv-l") == ["--kv-layout"]
    assert completions(environment, "cortex", "run", "--kv-layout", "") == ["auto", "pool", "lanes"]
    assert completions(environment, "cortex", "serve", "--kv-layout", "p") == ["pool"]
    assert completions(environment, "cortex", "serve", "--kv-layout", "=", "p") == ["pool"]


def test_bash_completes_models_on_disk(environment: dict[str, str]) -> None:
    assert completions(environment, "cortex", "run", "sm") == [MODEL]
    assert completions(environment, "cortex", "run", "ll") == ["llama3.2:1b", "llama3.2:3b"]
    assert completions(environment, "cortex", "run", "x") == []


@pytest.mark.parametrize("command", ["serve", "tune", "models get", "models remove"])
def test_bash_completes_models_on_disk_for_each_command(environment: dict[str, str], command: str) -> None:
    assert completions(environment, "cortex", *command.split(), "o") == ["owner:small"]


def test_bash_completes_the_rest_of_a_name_behind_its_colon(environment: dict[str, str]) -> None:
    assert completions(environment, "cortex", "run", "llama3.2", ":") == ["1b", "3b"]
    assert completions(environment, "cortex", "run", "--kv-layout", "=", "pool", "llama3.2", ":", "3") == ["3b"]


def test_stop_completes_the_models_that_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    health = SimpleNamespace(models=[SimpleNamespace(model=name) for name in ("llama3.2:1b", MODEL)])
    monkeypatch.setattr(completion, "read_record", lambda: "a record")
    monkeypatch.setattr(completion, "ask_health", lambda record, timeout: health)
    assert completion.served_models("s") == [MODEL]
    monkeypatch.setattr(completion, "ask_health", lambda record, timeout: None)
    assert completion.served_models("s") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_each_shell_is_printed(environment: dict[str, str], shell: str) -> None:
    done = run(environment, "cortex", "--show-completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_CORTEX_COMPLETE=complete_{shell}" in done.stdout


def test_a_shell_without_completion_is_refused(environment: dict[str, str]) -> None:
    done = run(environment, "cortex", "--show-completion", "tcsh")
    assert done.returncode == 2
    assert "tcsh" in done.stderr


def test_completion_is_installed_for_a_shell(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(environment | {"HOME": str(tmp_path)}, "cortex", "--install-completion", "bash")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".bash_completions" / "cortex.sh").is_file()


def test_bash_runs_the_script(environment: dict[str, str]) -> None:
    script = """
        eval "$(cortex --show-completion bash)"
        complete_words() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _cortex_completion cortex
            echo "${COMPREPLY[*]}"
        }
        complete_words cortex ser
        complete_words cortex run smollm2 : 1
        complete_words cortex run --kv-layout = l
        complete_words cortex run nothing-like-it
    """
    done = run(environment, str(program("bash")), "--norc", "-c", script)
    assert done.stdout.splitlines() == ["serve", "135m", "lanes", ""]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"_CORTEX_COMPLETE": "complete_bash"},
        {"_CORTEX_COMPLETE": "complete_bash", "COMP_WORDS": "cortex run ", "COMP_CWORD": "many"},
        {"_CORTEX_COMPLETE": "complete_bash", "COMP_WORDS": "cortex run '", "COMP_CWORD": "2"},
        {"_CORTEX_COMPLETE": "complete_tcsh"},
        {"_CORTEX_COMPLETE": "nonsense"},
    ],
)
def test_completion_that_fails_prints_nothing(environment: dict[str, str], variables: dict[str, str]) -> None:
    done = run(environment | variables, "cortex")
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_completion_with_models_that_cannot_be_listed_prints_nothing(environment: dict[str, str]) -> None:
    home = Path(environment["CORTEX_HOME"])
    (home / "models" / "llama3.2" / "1b" / "model.gguf").unlink()
    (home / "models" / "llama3.2" / "1b" / ".name").mkdir()
    (home / "server.json").write_text("this is not a record")
    assert completions(environment, "cortex", "stop", "") == []
    assert completions(environment, "cortex", "run", "llama3.2:1") == []


def test_completion_loads_neither_the_server_nor_the_engine(environment: dict[str, str]) -> None:
    code = """
import sys
from api.command.cli import main
try:
    main()
finally:
    heavy = {"numpy", "quart", "trio", "hypercorn", "httpx", "huggingface_hub", "llama_cpp", "jinja2", "api.protocols"}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    asked = {"_CORTEX_COMPLETE": "complete_bash", "COMP_WORDS": "cortex run sm", "COMP_CWORD": "2"}
    done = run(environment | asked, sys.executable, "-c", code)
    assert (done.stdout.split(), done.stderr.strip()) == ([MODEL], "[]")
