"""model.yaml: its valid content, and where its values apply."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from api.flags import ModelFlags
from api.models.defaults import NOTHING, DefaultsError, ModelDefaults, jinja, parse_defaults, read_defaults
from api.text.template import ChatTemplate
from api.text.tokenizer import Tokenizer
from scheduler.messages import SamplingParams, Submit
from tests.api.fakes import INFO, Server, chat

OF_CORTEX = """
# BEGIN GENERAL GGUF METADATA
id: tinyllama # Model ID unique between models (author / quantization)
model: tinyllama:1b-gguf # Model ID which is used for request construct
name: tinyllama:1b-gguf # metadata.general.name
version: 1 # metadata.version
files:
  - /models/tinyllama/model.gguf
# END GENERAL GGUF METADATA
stop: # tokenizer.ggml.eos_token_id
  - </s>
stream: true # Default true?
top_p: 0.9 # Ranges: 0 to 1
temperature: 0.7 # Ranges: 0 to 1
frequency_penalty: 0 # Ranges: 0 to 1
presence_penalty: 0.5 # Ranges: 0 to 1
max_tokens: 4096 # Should be default to context length
seed: -1
dynatemp_range: 0
dynatemp_exponent: 1
top_k: 40
min_p: 0.05
tfs_z: 1
typ_p: 1
repeat_last_n: 64
repeat_penalty: 1.1
mirostat: false
mirostat_tau: 5
mirostat_eta: 0.1
penalize_nl: false
ignore_eos: false
n_probs: 0
min_keep: 0
engine: llama-cpp # engine to run model
prompt_template: |+ # tokenizer.chat_template
  <|system|>
  {system_message}</s>
  <|user|>
  {prompt}</s>
  <|assistant|>

ctx_len: 4096 # llama.context_length | 0 or undefined = loaded from model
ngl: 23 # Undefined = loaded from model
created: 1729851553
"""

PATH = Path("/models/tiny/model.yaml")


def parsed(text: str) -> ModelDefaults:
    return parse_defaults(text, PATH)


def server_of(tokenizer: Tokenizer, text: str) -> Server:
    server = Server(tokenizer, defaults=parsed(text))
    server.answers()
    return server


async def sent(server: Server, **fields: Any) -> Submit:
    """The request that the engine gets for this chat."""
    response = await server.post(chat(**fields))
    assert response.status_code == 200, await response.get_data()
    return server.engine.submitted[-1]


def test_a_file_of_cortex_cpp_is_read() -> None:
    defaults = parsed(OF_CORTEX)
    assert defaults.model_dump(exclude_none=True) == {
        "stop": ["</s>"],
        "top_p": 0.9,
        "temperature": 0.7,
        "frequency_penalty": 0,
        "presence_penalty": 0.5,
        "max_tokens": 4096,
        "seed": -1,
        "top_k": 40,
        "min_p": 0.05,
        "typ_p": 1,
        "repeat_last_n": 64,
        "repeat_penalty": 1.1,
        "mirostat": False,
        "mirostat_tau": 5,
        "mirostat_eta": 0.1,
        "ignore_eos": False,
        "prompt_template": "<|system|>\n{system_message}</s>\n<|user|>\n{prompt}</s>\n<|assistant|>\n\n",
        "ctx_len": 4096,
        "ngl": 23,
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "null", "temperature:", "seed: null\nengine: vllm"])
def test_a_file_without_values_sets_nothing(text: str) -> None:
    assert parsed(text) == NOTHING


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("temprature: 0.7", "the key 'temprature' is unknown"),
        ("temperature: hot", "temperature: "),
        ("temperature: 3", "temperature: "),
        ("top_k: 1.5", "top_k: "),
        ("seed: true", "seed: "),
        ("stop: 5", "stop: "),
        ("stop: [a, 5]", "stop: "),
        ("stop: ['']", "stop: "),
        ("ctx_len: 63", "ctx_len must be at least 64"),
        ("ngl: all", "ngl: "),
        ("max_tokens: '5'", "max_tokens: "),
        ("mirostat: 2", "mirostat: "),
        ("tfs_z: 0.5", "tfs_z is not supported with this value"),
        ("penalize_nl: true", "penalize_nl is not supported with this value"),
        ("prompt_template: hello", "prompt_template: must contain {prompt}"),
        ("prompt_template: '{prompt}'\nchat_template: x", "prompt_template and chat_template exclude each other"),
        ("1: 2", "the key 1 is unknown"),
        ("- a\n- b", "must consist of keys and values"),
        ("just words", "must consist of keys and values"),
        ("a: b: c", "is not YAML: mapping values are not allowed here"),
        ("a: !!python/object/apply:os.system [true]", "is not YAML: could not determine a constructor"),
        ("a: \x01", "is not YAML: "),
        ("top_k: 1\nseed: 2\ntop_k: 1", "is not YAML: found the key 'top_k' twice"),
        ('top_k: 1\n"top_k": 1', "found the key 'top_k' twice"),
        ("metadata: {a: 1, a: 2}", "found the key 'a' twice"),
    ],
)
def test_an_invalid_file_raises_one_line_with_its_path(text: str, reason: str) -> None:
    with pytest.raises(DefaultsError) as raised:
        parsed(text)
    assert str(raised.value).startswith(str(PATH))
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [("5e-1", 0.5), ("+.5e0", 0.5), ("5E-1", 0.5), ("1.e0", 1.0), ("1e0", 1.0), ("0.5", 0.5), ("1", 1)],
)
def test_numbers_of_yaml_1_2_are_read(text: str, number: float) -> None:
    assert parsed(f"temperature: {text}").temperature == number


@pytest.mark.parametrize("text", ["5e", "e5", "1e5 a", "'1e5'", "1.2.3e1", ".e5"])
def test_text_that_only_looks_like_a_number_stays_text(text: str) -> None:
    assert parsed(f"stop: [{text}]").stop == [yaml.safe_load(text)]


VALUE = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists)


@given(st.sampled_from(["temperature", "stop", "seed", "prompt_template", "tfs_z", "name", "what"]), VALUE)
def test_no_value_causes_a_crash(key: str, value: Any) -> None:
    with suppress(DefaultsError):
        parsed(yaml.safe_dump({key: value}))


def test_the_file_beside_the_model_is_read(tmp_path: Path) -> None:
    assert read_defaults(tmp_path / "m.gguf") is NOTHING
    (tmp_path / "model.yaml").write_text("top_k: 3")
    assert read_defaults(tmp_path / "m.gguf") == ModelDefaults(top_k=3)
    (tmp_path / "model.yaml").write_bytes(b"\xff")
    with pytest.raises(DefaultsError, match=r"model\.yaml cannot be read"):
        read_defaults(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("flags", "text", "ctx_len", "gpu_layers"),
    [
        (ModelFlags(), "", None, -1),
        (ModelFlags(), "ctx_len: 256\nngl: 7", 256, 7),
        (ModelFlags(), "ctx_len: 0\nngl: 0", None, 0),
        (ModelFlags(ctx_len=128, gpu_layers=3), "ctx_len: 256\nngl: 7", 128, 3),
        (ModelFlags(gpu_layers=-1), "ngl: 7", None, -1),
    ],
)
def test_a_flag_overrides_the_file_and_the_file_overrides_the_default(
    tmp_path: Path, flags: ModelFlags, text: str, ctx_len: int | None, gpu_layers: int
) -> None:
    (tmp_path / "model.yaml").write_text(text)
    engine = flags.model_options("tiny", tmp_path / "m.gguf").engine
    assert (engine.ctx_len, engine.gpu_layers) == (ctx_len, gpu_layers)


ALL = """
stop: [END]
temperature: 0.25
top_p: 0.5
top_k: 7
min_p: 0.125
typ_p: 0.75
frequency_penalty: 0.5
presence_penalty: -0.5
repeat_penalty: 1.5
repeat_last_n: 16
mirostat: true
mirostat_tau: 4
mirostat_eta: 0.25
ignore_eos: true
seed: 11
max_tokens: 9
"""


async def test_defaults_apply_to_fields_that_a_request_leaves_out(tokenizer: Tokenizer) -> None:
    submit = await sent(server_of(tokenizer, ALL))
    assert submit.max_tokens == 9
    assert submit.params == SamplingParams(
        temperature=0.25,
        top_p=0.5,
        top_k=7,
        min_p=0.125,
        typical_p=0.75,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        repeat_penalty=1.5,
        repeat_last_n=16,
        mirostat=1,
        mirostat_tau=4,
        mirostat_eta=0.25,
        ignore_eos=True,
        seed=11,
    )


async def test_null_counts_as_left_out(tokenizer: Tokenizer) -> None:
    server = server_of(tokenizer, ALL)
    nulls = dict.fromkeys(("temperature", "top_k", "seed", "stop", "max_tokens", "repeat_penalty", "mirostat"))
    assert (await sent(server)).params == (await sent(server, **nulls)).params


async def test_the_fields_of_a_request_override_the_defaults(tokenizer: Tokenizer) -> None:
    server = server_of(tokenizer, ALL)
    asked = {"temperature": 0, "top_k": 0, "seed": 3, "mirostat": 0, "ignore_eos": False, "frequency_penalty": 0}
    params = (await sent(server, **asked, repetition_penalty=1.25, max_tokens=4)).params
    assert server.engine.submitted[-1].max_tokens == 4
    assert {name: getattr(params, name) for name in asked} == asked
    assert params.repeat_penalty == 1.25
    assert params.top_p == 0.5
    assert (await sent(server, max_completion_tokens=30)).max_tokens == 30


async def test_a_random_seed_stays_random(tokenizer: Tokenizer) -> None:
    server = server_of(tokenizer, "seed: -1")
    assert (await sent(server)).params.seed != (await sent(server)).params.seed


@pytest.mark.parametrize("limit", ["-1", "0", "null"])
async def test_without_a_limit_an_answer_may_fill_the_context(tokenizer: Tokenizer, limit: str) -> None:
    submit = await sent(server_of(tokenizer, f"max_tokens: {limit}"))
    assert len(submit.tokens) + submit.max_tokens == INFO.ctx_len


async def test_a_limit_beyond_the_context_is_cut_to_it(tokenizer: Tokenizer) -> None:
    server = server_of(tokenizer, "max_tokens: 100000")
    submit = await sent(server)
    assert len(submit.tokens) + submit.max_tokens == INFO.ctx_len
    completion = {"model": "smollm2:135m", "prompt": "Once upon a time"}
    assert (await server.client.post("/v1/completions", json=completion)).status_code == 200
    submit = server.engine.submitted[-1]
    assert len(submit.tokens) + submit.max_tokens == INFO.ctx_len


async def test_the_files_stop_strings_apply_unless_the_request_has_its_own(tokenizer: Tokenizer) -> None:
    server = server_of(tokenizer, "stop: [END]")
    server.answers("One END two")
    for fields, expected in (
        ({}, "One "),
        ({"stop": None}, "One "),
        ({"stop": ["two"]}, "One END "),
        ({"stop": []}, "One END two"),
    ):
        answer = await (await server.post(chat(**fields))).get_json()
        assert answer["choices"][0]["message"]["content"] == expected


async def test_completions_get_the_same_defaults(tokenizer: Tokenizer) -> None:
    server = server_of(tokenizer, "temperature: 0.25\nmax_tokens: 9\nstop: [END]")
    server.answers("One END two")
    body = {"model": "smollm2:135m", "prompt": "Zero"}
    answer = await (await server.client.post("/v1/completions", json=body)).get_json()
    assert answer["choices"][0]["text"] == "One "
    submit = server.engine.submitted[-1]
    assert (submit.params.temperature, submit.max_tokens) == (0.25, 9)
    await server.client.post("/v1/completions", json=body | {"max_tokens": 3})
    assert server.engine.submitted[-1].max_tokens == 3


def rendered(template: str, tokenizer: Tokenizer, *turns: tuple[str, str]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.text(ChatTemplate(template, tokenizer).render_tokens(messages))


CHATML = "<|im_start|>system\n{system_message}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("system", ["system", "developer"])
def test_a_prompt_template_starts_the_conversation(tokenizer: Tokenizer, system: str) -> None:
    asked = (system, "Be brief."), ("user", "Hi {prompt}")
    expected = CHATML.replace("{prompt}", "Hi {prompt}").replace("{system_message}", "Be brief.")
    assert rendered(jinja(CHATML), tokenizer, *asked) == expected
    assert rendered(jinja(CHATML), tokenizer, *asked, ("assistant", "Hello"), ("user", "Bye")) == (
        expected + "Hello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_missing_system_message_is_rendered_empty(tokenizer: Tokenizer) -> None:
    expected = CHATML.replace("{prompt}", "Hi").replace("{system_message}", "")
    assert rendered(jinja(CHATML), tokenizer, ("user", "Hi")) == expected


def test_without_a_placeholder_the_system_message_precedes_the_question(tokenizer: Tokenizer) -> None:
    template = jinja("[INST] {prompt} [/INST]")
    assert rendered(template, tokenizer, ("user", "Hi")) == "[INST] Hi [/INST]"
    prompt = rendered(template, tokenizer, ("system", "Be brief."), ("user", "Hi"))
    assert prompt.startswith("[INST] Be brief.")
    assert prompt.endswith("Hi [/INST]")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: "{" not in text)


@given(TEXT, TEXT, TEXT, TEXT, TEXT)
def test_every_prompt_template_is_rendered_literally(
    before: str, between: str, after: str, rule: str, question: str
) -> None:
    template = ChatTemplate(jinja(f"{before}{{system_message}}{between}{{prompt}}{after}"), Letters())
    messages = [{"role": "system", "content": rule}, {"role": "user", "content": question}]
    prompt = "".join(map(chr, template.render_tokens(messages)))
    assert prompt == f"{before}{rule}{between}{question}{after}"


class Letters:
    """A vocabulary of single characters."""

    bos_id = None
    bos_token = eos_token = ""
    add_bos = False
    control_texts: tuple[str, ...] = ()

    def encode(self, text: str, *, parse_special: bool, continues: bool = False) -> list[int]:
        return list(map(ord, text))


async def test_the_files_template_replaces_the_models(tokenizer: Tokenizer) -> None:
    server = server_of(tokenizer, 'chat_template: "{{ messages[0].content }}!"')
    assert tokenizer.text((await sent(server)).tokens) == "Hello!"
    server = server_of(tokenizer, 'prompt_template: "Q: {prompt} A:"')
    assert tokenizer.text((await sent(server)).tokens) == "Q: Hello A:"
