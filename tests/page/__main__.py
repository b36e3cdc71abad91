"""Drives the page in Chromium: `python -m tests.page`. Options of pytest are accepted, such as `-k hostile`.

`--screenshots FOLDER` also writes the images of the docs into the folder. The browser is the installed Chromium, or the
program that the environment variable CHROMIUM names.
"""

import sys
from pathlib import Path

import pytest

from tests.page.chromium import chromium


def main() -> int:
    folder = Path(__file__).parent
    # `make test` collects only files with the names test_*.py, so it needs no browser.
    options = ["-o", "python_files=check_*.py", "-p", "tests.page.plugin", "--timeout", "300"]
    return pytest.main([*options, *sys.argv[1:], str(folder)])


if __name__ == "__main__":
    if chromium() is None:
        sys.exit("Chromium is missing. Install it (Debian: apt-get install chromium), or name its program in CHROMIUM.")
    sys.exit(main())
