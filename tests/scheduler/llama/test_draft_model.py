"""A second model drafts: which models are refused, and what it guesses with KV memory of its own."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from scheduler.config import EngineConfig
from scheduler.drafts.drafter import NO_DRAFT
from scheduler.drafts.model import ModelDrafter
from scheduler.errors import ModelError, NoMemoryError
from scheduler.llama import draft_model
from scheduler.llama.context import Context
from scheduler.llama.draft_model import OpenedDrafts, open_draft_model
from scheduler.llama.load import Parts, load
from scheduler.llama.model import Model
from scheduler.messages import SamplingParams, Submit
from scheduler.plan import NoRoomError
from scheduler.sequence import Sequence
from tests.models import write_bert
from tests.tiny_models import TOKENS, write_tiny_model

if TYPE_CHECKING:
    from api.text.tokenizer import Tokenizer

MAIN = 3
"""Seed of the main model's weights."""


@pytest.fixture(scope="module")
def main_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "main.gguf"
    write_tiny_model(path, "dense", seed=MAIN)
    return str(path)


@pytest.fixture(scope="module")
def main(main_path: str) -> Iterator[Model]:
    model = Model(main_path, 0)
    yield model
    model.close()


def opened(main: Model, main_path: str, path: Path | str, **options: Any) -> OpenedDrafts:
    config = EngineConfig(main_path, **{"draft_model": str(path), "ctx_len": 256, "threads": 1, **options})
    drafts = open_draft_model(config, main)
    assert drafts is not None
    return drafts


def sequence(request_id: int, tokens: list[int]) -> Sequence:
    return Sequence(Submit(request_id, tokens, 10_000, SamplingParams(temperature=0.0)), request_id)


def greedy(model: Model, tokens: list[int], count: int) -> list[int]:
    """Returns the model's `count` most likely next tokens, one after the other."""
    context = Context(
        model,
        EngineConfig(""),
        kv_tokens=1024,
        num_ids=1,
        num_outputs=1,
        batch_tokens=512,
        threads=1,
    )
    answer: list[int] = []
    for start, part in [(0, tokens), *((len(tokens) + i, None) for i in range(count - 1))]:
        batch = part or answer[-1:]
        end = len(batch)
        context.tokens[:end] = batch
        context.positions[:end] = np.arange(start, start + end)
        context.ids[:end] = 0
        context.outputs[:end] = 0
        context.outputs[end - 1] = 1
        context.decode(end)
        answer.append(int(context.logits(1)[0].argmax()))
    context.close()
    return answer


@pytest.mark.parametrize(
    "config", [EngineConfig(""), EngineConfig("", draft_model="unread.gguf", draft="off")], ids=["none", "off"]
)
def test_there_is_no_draft_model_unless_it_is_wanted(main: Model, config: EngineConfig) -> None:
    assert open_draft_model(config, main) is None


@pytest.mark.parametrize("kind", ["dense", "experts", "sliding_window", "latent"])
def test_a_model_of_another_kind_with_the_same_vocabulary_drafts(
    main: Model, main_path: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "draft.gguf"
    write_tiny_model(path, kind)
    own = Model(str(path), 0)
    drafter = opened(main, main_path, path).drafter
    tokens = [1, *(5 + i * 7 % 250 for i in range(20))]
    (draft,) = drafter.draft([sequence(1, tokens)], [4])
    assert draft.tokens == greedy(own, tokens, 4)[: len(draft.tokens)]
    assert drafter.seconds(8, 2) > 0
    own.close()


@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
def test_a_state_that_cannot_be_cut_is_refused_on_either_side(
    main: Model, main_path: str, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "recurrent.gguf"
    write_tiny_model(path, kind)
    recurrent = Model(str(path), 0)
    for each, each_path, drafts in ((main, main_path, str(path)), (recurrent, str(path), main_path)):
        with pytest.raises(ModelError, match=f"{path} is recurrent, and rejected tokens cannot be removed"):
            opened(each, each_path, drafts)
    recurrent.close()


def test_a_model_that_fails_the_trial_is_refused(main: Model, main_path: str, tmp_path: Path) -> None:
    path = tmp_path / "draft.gguf"
    write_tiny_model(path, "cogvlm")
    with pytest.raises(ModelError, match=r"draft-model .* does not compute this model correctly"):
        opened(main, main_path, path)


def test_a_model_that_cannot_remove_tokens_is_refused(
    main: Model, main_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Context.remove
    monkeypatch.setattr(Context, "remove", lambda self, id_, start, stop: start == 0 and remove(self, id_, start, stop))
    with pytest.raises(ModelError, match=r"this model cannot draft: llama.cpp cannot remove the end of a sequence"):
        opened(main, main_path, main_path)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    write_bert(path, gguf.PoolingType.CLS)
    encoder = Model(str(path), 0)
    with pytest.raises(ModelError, match="does not generate text"):
        opened(encoder, str(path), path)
    encoder.close()


NORMAL, UNUSED = gguf.TokenType.NORMAL, gguf.TokenType.UNUSED


@pytest.mark.parametrize(
    ("tokens", "difference"),
    [
        ([*TOKENS[:-1], ("\u2581large", NORMAL)], r"token 271 is '\u2581large' instead of '\u2581big'"),
        ([*TOKENS, ("\u2581large", NORMAL)], "it has 273 tokens instead of 272"),
        (TOKENS[:-1], "it has 271 tokens instead of 272"),
        ([*TOKENS[:10], ("<0x05>", NORMAL), *TOKENS[11:]], "token 10 is a byte in only one of them"),
        ([*TOKENS[:3], ("<|im_start|>", NORMAL), *TOKENS[4:]], ""),
        ([*TOKENS, ("[PAD272]", UNUSED), ("[PAD273]", UNUSED)], ""),
    ],
    ids=["text", "more", "fewer", "byte", "control", "padding"],
)
def test_vocabularies_must_be_the_same(
    main: Model, main_path: str, tokens: list[tuple[str, gguf.TokenType]], difference: str, tmp_path: Path
) -> None:
    path = tmp_path / "draft.gguf"
    write_tiny_model(path, "dense", tokens=tokens)
    if not difference:
        opened(main, main_path, path)
        return
    with pytest.raises(
        ModelError, match=f"^--draft-model {path}: its vocabulary is not that of the model: {difference}$"
    ):
        opened(main, main_path, path)


def test_another_kind_of_tokenizer_is_refused(main: Model, main_path: str, tmp_path: Path) -> None:
    path = tmp_path / "draft.gguf"
    write_bert(path, None)
    with pytest.raises(ModelError, match="the kind of tokenizer differs"):
        opened(main, main_path, path)


def test_a_file_that_cannot_be_loaded_is_named(main: Model, main_path: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing.gguf"):
        opened(main, main_path, tmp_path / "missing.gguf")


def test_a_draft_model_that_does_not_fit_is_refused(
    main: Model, main_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "available_bytes", lambda config: 1000)
    with pytest.raises(NoMemoryError, match=r"--draft-model .* does not fit into memory"):
        opened(main, main_path, main_path)


def grow_until_drafted(drafter: ModelDrafter, sequences: list[Sequence]) -> None:
    for _ in range(10_000):
        drafts = drafter.draft(sequences, [2] * len(sequences))
        if all(draft is not NO_DRAFT for draft in drafts):
            return
    pytest.fail("the memory did not grow")


@pytest.mark.parametrize("kind", ["dense", "sliding_window"])
def test_the_memory_grows_and_keeps_its_contents(
    main: Model, main_path: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_model, "FIRST_CELLS", 256)
    monkeypatch.setattr("scheduler.drafts.model.MIN_PROBABILITY", 0.0)
    path = tmp_path / "draft.gguf"
    write_tiny_model(path, kind)
    own = Model(str(path), 0)
    drafter = opened(main, main_path, path).drafter
    two = [sequence(number, [1, *(5 + (i * 7 + number) % 250 for i in range(150))]) for number in range(2)]
    grow_until_drafted(drafter, two)
    assert drafter._model.num_cells == 512
    for one in two:
        tokens = np.frombuffer(bytes(one.known), "<i4").tolist()
        (draft,) = drafter.draft([one], [3])
        assert draft.tokens == greedy(own, tokens, 3)
    own.close()


def is_growing(memory: draft_model.DraftMemory) -> bool:
    return memory._opening is not None


def test_memory_that_is_not_there_is_not_taken(
    main: Model, main_path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(draft_model, "FIRST_CELLS", 256)
    drafter = opened(main, main_path, main_path).drafter
    memory = drafter._model
    assert isinstance(memory, draft_model.DraftMemory)
    monkeypatch.setattr(draft_model, "available_bytes", lambda config: 1000)
    assert not memory.grow()
    assert not is_growing(memory)
    monkeypatch.undo()

    def fail(num_cells: int) -> Context:
        raise ModelError("no memory")

    monkeypatch.setattr(memory, "_open", fail)
    assert memory.grow()
    with caplog.at_level(logging.WARNING, "cortex.engine"):
        while is_growing(memory):
            memory.settle()
    assert "does not grow: no memory" in caplog.text
    assert not memory.grow()
    assert not is_growing(memory)


def test_a_step_without_room_costs_only_drafts(main: Model, main_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = opened(main, main_path, main_path).drafter

    def fail(self: Context, num_tokens: int) -> None:
        raise NoRoomError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Context, "decode", fail)
        assert drafter.draft([sequence(1, [1, 2, 3])], [4]) == [NO_DRAFT]
    assert drafter.draft([sequence(1, [1, 2, 3])], [4]) == [NO_DRAFT]  # it pauses


def answers(config: EngineConfig) -> tuple[dict[int, list[int]], Parts]:
    """Returns the answers of three requests, with all that the draft model guesses."""
    parts = load(config)
    drafting = parts.scheduler._drafting
    drafting._drafters = [each for each in drafting._drafters if each.source == "model"]
    drafting._amounts = None
    tokens: dict[int, list[int]] = {}
    for number, temperature in enumerate((0.0, 0.0, 1.0)):
        params = SamplingParams(temperature=temperature, seed=number, ignore_eos=True)
        parts.scheduler.submit(Submit(number, [1, *range(10 + 20 * number, 30 + 20 * number)], 60, params))
        tokens[number] = []
    while parts.scheduler.has_work:
        plan = parts.scheduler.plan()
        for output in parts.scheduler.commit(plan, parts.runner.run(plan)):
            tokens[output.request_id] += output.tokens
    parts.scheduler.cache.check_integrity()
    return tokens, parts


@pytest.mark.parametrize("layout", ["lanes", "pool"])
@pytest.mark.parametrize(("kind", "seed"), [("dense", MAIN), ("dense", 1), ("sliding_window", 1)])
def test_an_engine_answers_the_same_with_a_draft_model(
    main_path: str, kind: str, seed: int, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.drafts.model.MIN_PROBABILITY", 0.0)
    path = tmp_path / "draft.gguf"
    write_tiny_model(path, kind, seed)
    exact = EngineConfig(main_path, kv_type="f32", flash_attn="off")  # otherwise the size of a step changes rounding
    config = dataclasses.replace(exact, ctx_len=256, max_seqs=4, threads=1, kv_layout=layout)
    plain, _ = answers(dataclasses.replace(config, draft="off", draft_model=str(path)))
    drafted, parts = answers(dataclasses.replace(config, draft_model=str(path)))
    assert drafted == plain
    assert parts.info.draft_model.startswith("gemma3" if kind == "sliding_window" else "llama")
    counts = parts.scheduler.statistics().draft_sources["model"]
    assert counts["draft_tokens"] > 0
    if seed == MAIN:
        assert counts["accepted_draft_tokens"] > 100, "nearly all tokens of the two greedy answers"


def test_an_encoder_has_no_draft_model(main_path: str, tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    write_bert(path, gguf.PoolingType.CLS)
    with pytest.raises(ModelError, match="generates no text"):
        load(EngineConfig(str(path), draft_model=main_path))


def test_every_token_of_a_model_that_drafts_for_itself_is_accepted(model_path: str, tokenizer: "Tokenizer") -> None:
    main = Model(model_path, 0)
    drafter = opened(main, model_path, model_path, ctx_len=512).drafter
    text = "One, two, three, four, five,"
    prompt = tokenizer.encode(text, parse_special=False)
    answer = greedy(main, prompt, 16)
    one, num_drafted = sequence(1, prompt), 0
    while (done := one.num_known - len(prompt)) < len(answer) - 4:
        (draft,) = drafter.draft([one], [4])
        assert draft.tokens == answer[done : done + len(draft.tokens)]
        num_drafted += len(draft.tokens)
        for token in answer[done : done + len(draft.tokens) + 1]:
            one.append(token)
    assert num_drafted >= 8
    main.close()
