"""docs/design.md describes the code as it is."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "design.md").read_text()
HOPS = re.findall(r"^\| (\d+) \| `([\w.]+):([\w.]+)` \|", TEXT, re.MULTILINE)


@pytest.mark.parametrize(("module", "name"), [hop[1:] for hop in HOPS])
def test_every_step_of_a_request_exists(module: str, name: str) -> None:
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)


def test_a_request_takes_23_steps_down_and_17_up() -> None:
    numbers = [int(number) for number, _, _ in HOPS]
    assert numbers == [*range(1, 24), *range(1, 18)]


def test_the_house_lists_every_package() -> None:
    house = TEXT.split("## The house\n```\n")[1].split("```")[0]
    top = set(re.findall(r"^(\w+)/", house, re.MULTILINE))
    rooms = set(re.findall(r"^  (\w+)/ ", house, re.MULTILINE))
    assert top == {"api", "scheduler", "kvcache", "bench", "deploy", "web", "tests"}
    folders = {path.parent.name for package in ("api", "scheduler") for path in ROOT.glob(f"{package}/*/__init__.py")}
    assert rooms == folders
