"""Only scheduler.llama needs llama.cpp. The scheduler, the cache and their tests can be imported without it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

IMPORT_ALL = """
import importlib, pkgutil, sys

sys.modules["llama_cpp"] = None
packages = ["scheduler", "kvcache", "tests.scheduler", "tests.kvcache"]
names = ["tests.conftest"]
while packages:
    package = importlib.import_module(packages.pop())
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.endswith(".llama"):
            (packages if module.ispkg else names).append(module.name)
for name in names:
    importlib.import_module(name)
print(*names)
"""


def test_all_modules_can_be_imported_without_llama_cpp() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = done.stdout.split()
    assert {"scheduler.scheduler", "scheduler.engine", "kvcache.cache", "tests.scheduler.fakes"} <= set(imported)
    assert not [name for name in imported if ".llama" in name]
