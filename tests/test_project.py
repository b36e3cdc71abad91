"""The files around the code: metadata, licence, changelog, wheel, container image."""

import json
import os
import re
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
from typing import Any, Final

import pytest

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
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=SECONDS,
    )  # fmt: skip
    files = {Path(line) for line in listed.stdout.splitlines()}
    known = files | {parent for file in files for parent in file.parents}
    assert copied()
    assert {Path(path) for path in copied()} <= known


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
            shutil.copytree(ROOT / path, source / path, ignore=shutil.ignore_patterns("__pycache__"))
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


def test_the_wheel_has_the_licence_and_the_metadata(wheel: zipfile.ZipFile) -> None:
    folder = f"cortex_server-{PROJECT['version']}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
