"""Each kind of memory and attention is served right: tiny models of random weights pass the checks of the zoo."""

from pathlib import Path

import gguf
import pytest

from scheduler.llama.context import Context
from tests.models import write_bert
from tests.tiny_models import KINDS, write_tiny_model
from tests.zoo.checks import Checks, Report
from tests.zoo.served import Served

IN_LANES = ("dense", "experts", "latent")
"""Kinds that run in lanes at auto."""
CASES = [(kind, layout) for kind in KINDS for layout in ("auto", "pool", "lanes")]


def check(kind: str, layout: str, folder: Path) -> Report:
    path = folder / f"{kind}.gguf"
    write_tiny_model(path, kind)
    return Checks(str(path), layout, folder / "kv").run()


@pytest.mark.parametrize(
    ("kind", "layout"), [(kind, layout) for kind, layout in CASES if kind not in IN_LANES or layout != "lanes"]
)
def test_every_answer_is_that_of_a_fresh_engine(kind: str, layout: str, tmp_path: Path) -> None:
    report = check(kind, layout, tmp_path)
    assert report.wrong == {}
    assert report.notices == "one token"
    assert report.quantized == "right"
    assert {"hit", "restart"} <= report.cached.keys()


@pytest.mark.parametrize("kind", IN_LANES)
def test_a_kind_runs_in_lanes_at_auto(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_tiny_model(path, kind)
    with Served(str(path), "auto") as engine:
        assert engine.info.kv_layout == "lanes"


def test_a_model_whose_logits_belong_to_another_token_is_refused(tmp_path: Path) -> None:
    report = check("cogvlm", "auto", tmp_path)
    assert "it returns the logits of a step's first token instead of its last" in report.refused


def test_an_encoder_loads(tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    write_bert(path, gguf.PoolingType.CLS)
    report = Checks(str(path), "auto", tmp_path / "kv").run()
    assert report.refused == ""
    assert not report.generates


def test_one_missing_cell_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = Context.share

    def share_all_but_one(self: Context, source: int, target: int, start: int, stop: int) -> None:
        missing = (start + stop) // 2
        share(self, source, target, start, missing)
        share(self, source, target, missing + 1, stop)

    monkeypatch.setattr(Context, "share", share_all_but_one)
    report = check("dense", "pool", tmp_path)
    assert {"shared", "shared later"} <= report.wrong.keys()
