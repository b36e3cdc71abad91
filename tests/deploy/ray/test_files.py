"""The files around the application: its configuration, its extra, and what importing it needs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from deploy.ray.settings import Settings

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "ray"
WITH_RAY = {"__main__", "application", "router"}
CHECKS = {"check", "measure", "local"}


def test_the_serve_config_has_valid_settings() -> None:
    config = yaml.safe_load((FOLDER / "serve.yaml").read_text())
    (application,) = config["applications"]
    settings = Settings.model_validate(application["args"])
    assert settings.min_replicas < settings.max_replicas
    module, _, function = application["import_path"].partition(":")
    assert f"def {function}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()


def test_the_proxy_listens_on_loopback_as_nodes_demand_no_keys() -> None:
    config = yaml.safe_load((FOLDER / "serve.yaml").read_text())
    assert config["http_options"]["host"] == "127.0.0.1"


def test_the_extra_is_no_part_of_the_tests() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(each.startswith("ray[serve]") for each in extras["ray"])
    assert not any("ray" in each for name in ("test", "embedded") for each in extras[name])


def test_only_three_modules_import_ray() -> None:
    modules = {path.stem for path in FOLDER.glob("*.py")} - WITH_RAY - CHECKS - {"__init__"}
    code = f"""
import sys
for name in {sorted(modules)}:
    __import__("deploy.ray." + name)
print(sorted({{"ray", "starlette", "quart", "api", "scheduler"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
