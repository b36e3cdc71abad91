"""The table of other servers' fields: which this server serves, which it accepts without effect, which it refuses.

`api.protocols.fields.parse` follows this table, and the table in docs/api.md comes from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Final, Literal

Endpoint = Literal["chat", "completions", "responses", "embeddings", "tokenize", "apply-template"]
Verdict = Literal["served", "accepted", "refused"]

GENERATING: Final[tuple[Endpoint, ...]] = ("chat", "completions", "responses")
CHAT: Final[tuple[Endpoint, ...]] = ("chat",)
COMPLETIONS: Final[tuple[Endpoint, ...]] = ("completions",)
CHATS: Final[tuple[Endpoint, ...]] = ("chat", "responses")
TEXTS: Final[tuple[Endpoint, ...]] = ("chat", "completions")
EMBEDDING: Final[tuple[Endpoint, ...]] = ("embeddings",)
TEMPLATES: Final[tuple[Endpoint, ...]] = ("chat", "tokenize", "apply-template")
RENDERING: Final[tuple[Endpoint, ...]] = ("chat", "responses", "tokenize", "apply-template")
EVERY: Final[tuple[Endpoint, ...]] = (*GENERATING, "embeddings")

LLAMA: Final = "llama-server"
VLLM: Final = "vLLM"
SGLANG: Final = "SGLang"
OLLAMA: Final = "Ollama"
OPENROUTER: Final = "OpenRouter"

NUMBER: Final = (int, float)
INTEGER: Final = (int,)
TEXT: Final = (str,)
BOOLEAN: Final = (bool,)
_TYPE_NAMES: Final = {int: "integer", float: "number", str: "string", bool: "boolean"}


@dataclass(frozen=True, slots=True)
class OtherField:
    """One field of other servers."""

    name: str
    servers: str
    """The servers that have it."""
    endpoints: tuple[Endpoint, ...]
    """Where this server knows it."""
    verdict: Verdict
    note: str
    """What it does here, why it has no effect, or why it is refused."""
    nothing: tuple[object, ...] = ()
    """The values that ask for nothing: they mean the same as null, which every field accepts."""
    types: tuple[type, ...] = ()
    """The types of an accepted field's values."""

    def asks_for_nothing(self, value: object) -> bool:
        return value is None or any(_equal(value, each) for each in self.nothing)

    def has_type(self, value: object) -> bool:
        """Whether an accepted value has one of the types. A boolean is no number."""
        return isinstance(value, bool) == (bool in self.types) and isinstance(value, self.types)

    @property
    def type_names(self) -> str:
        """The types in words of JSON."""
        return " or ".join(_TYPE_NAMES[each] for each in self.types)


def _equal(value: object, other: object) -> bool:
    """Equality of JSON values: 1 equals 1.0, but not true."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    return value == other


def _served(
    names: str,
    servers: str,
    note: str,
    endpoints: tuple[Endpoint, ...] = GENERATING,
    nothing: tuple[object, ...] = (),
) -> list[OtherField]:
    return [OtherField(name, servers, endpoints, "served", note, nothing) for name in names.split()]


def _accepted(
    names: str,
    servers: str,
    types: tuple[type, ...],
    note: str,
    endpoints: tuple[Endpoint, ...] = GENERATING,
) -> list[OtherField]:
    return [OtherField(name, servers, endpoints, "accepted", note, (), types) for name in names.split()]


def _refused(
    names: str,
    servers: str,
    nothing: tuple[object, ...],
    note: str,
    endpoints: tuple[Endpoint, ...] = GENERATING,
) -> list[OtherField]:
    return [OtherField(name, servers, endpoints, "refused", note, nothing) for name in names.split()]


_MODELS_TEMPLATE: Final = "the template is the model's own, or the one in its `model.yaml`"
_TEXT_ONLY: Final = "reasoning is part of a completion's text"
_NO_LORA: Final = "adapters are not supported"
_NO_TRACES: Final = "the answer has the fields of OpenAI's API only"
_OWN_ID: Final = "the id of a request is the header `x-request-id`"
_RUNS_ALONE: Final = "the engine of a model is one process on one machine"
_SAMPLERS: Final = ["top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
_SAME_SAMPLERS: Final = tuple(
    [*first, *_SAMPLERS]
    for first in (["dry"], ["dry", "top_n_sigma"], ["penalties", "dry"], ["penalties", "dry", "top_n_sigma"])
)
"""llama-server's default, in several versions."""

OTHER_FIELDS: Final = (
    # sampling
    *_served("top_k min_p repetition_penalty", f"{VLLM}, {SGLANG}, {OPENROUTER}", "see the samplers above"),
    *_served("typical_p top_n_sigma repeat_penalty repeat_last_n", LLAMA, "see the samplers above"),
    *_served("dry_multiplier dry_base dry_allowed_length dry_penalty_last_n", LLAMA, "see the samplers above"),
    *_served("dry_sequence_breakers xtc_probability xtc_threshold", LLAMA, "see the samplers above"),
    *_served("mirostat mirostat_tau mirostat_eta", LLAMA, "see the samplers above"),
    *_served("ignore_eos", f"{LLAMA}, {VLLM}, {SGLANG}", "see the samplers above"),
    *_served("seed", f"{LLAMA}, {VLLM}", "-1 is a random seed", nothing=(-1,)),
    *_served("logit_bias", LLAMA, "an object of token ids, as OpenAI has it", nothing=([], False)),
    *_served("top_p", f"{LLAMA}, {SGLANG}", "0 takes the best token, as `temperature` 0 does"),
    *_refused("dynatemp_range", LLAMA, (0,), "the temperature does not depend on the entropy"),
    *_accepted("dynatemp_exponent", LLAMA, NUMBER, "it only acts with `dynatemp_range`"),
    *_refused("adaptive_target", LLAMA, (-1,), "this sampler is not supported"),
    *_accepted("adaptive_decay", LLAMA, NUMBER, "it only acts with `adaptive_target`"),
    *_refused("samplers", LLAMA, _SAME_SAMPLERS, "the order of the samplers is fixed"),
    *_refused("min_keep", LLAMA, (0, 1), "samplers always keep at least one token"),
    *_refused("typ_p tfs_z", LLAMA, (1,), "use `typical_p`"),
    *_refused("penalize_nl", LLAMA, (False,), "use `logit_bias`"),
    *_refused("top_a", OPENROUTER, (0,), "use `min_p`"),
    *_refused("use_beam_search early_stopping", VLLM, (False,), "there is no beam search"),
    *_refused("length_penalty", VLLM, (1,), "there is no beam search"),
    *_refused("allowed_token_ids", VLLM, ([],), "use `logit_bias` or a grammar"),
    *_refused("bad_words", VLLM, ([],), "use `logit_bias`"),
    *_refused("repetition_detection", VLLM, (), "use `repeat_penalty` or `dry_multiplier`"),
    *_refused("logits_processors", VLLM, ([],), "the server runs no code of clients"),
    *_refused("custom_logit_processor", SGLANG, ("",), "the server runs no code of clients"),
    *_refused("custom_params", SGLANG, ({},), "the server runs no code of clients"),
    # length and end of the answer
    *_served("min_tokens", f"{VLLM}, {SGLANG}", "the answer does not end before it has this many tokens"),
    *_served(
        "stop_token_ids",
        f"{VLLM}, {SGLANG}",
        "the answer ends before a token with one of these ids, but not before `min_tokens`",
    ),
    *_served("stop", f"{LLAMA}, {OLLAMA}", "an empty text stops nothing", nothing=("",)),
    *_served("max_tokens", LLAMA, "-1 is no limit", TEXTS, (-1,)),
    *_served("max_completion_tokens", LLAMA, "-1 is no limit", CHAT, (-1,)),
    *_refused("n_predict", LLAMA, (-1,), "use `max_tokens`"),
    *_refused("n_indent", LLAMA, (0,), "lines of an answer may have any indentation"),
    *_refused("t_max_predict_ms t_max_prompt_ms", LLAMA, (0, -1), "use the header `X-Request-Timeout`"),
    *_refused("include_stop_str_in_output no_stop_trim", f"{VLLM}, {SGLANG}", (False,), "`stop` is never returned"),
    *_refused("stop_regex", SGLANG, ("", []), "use `stop`, or `guided_regex` for the whole answer"),
    *_accepted("n_keep n_discard", LLAMA, INTEGER, "a context is never shifted"),
    *_refused("truncate_prompt_tokens", VLLM, (), "prompts are not cut", EVERY),
    *_refused("n_cmpl", LLAMA, (1,), "use `n`"),
    *_refused("best_of", VLLM, (1,), "only completions have it", CHATS),
    # structured output
    *_served("structured_outputs guided_json guided_regex guided_choice", VLLM, "see Structured output"),
    *_served("guided_grammar", VLLM, "see Structured output", nothing=("",)),
    *_served("grammar", LLAMA, "a grammar in GBNF or Lark that the answer must match", nothing=("",)),
    *_served("json_schema", LLAMA, "a JSON schema that the answer must match"),
    *_accepted("guided_decoding_backend", VLLM, TEXT, "llguidance is used for every grammar"),
    *_refused("guided_whitespace_pattern structural_tag", VLLM, (), "use a grammar"),
    *_refused("guided_json_object", VLLM, (False,), "use `response_format`"),
    *_refused("regex", SGLANG, (), "use `guided_regex`"),
    *_refused("ebnf", SGLANG, (), "use `grammar`"),
    *_refused("grammar_lazy", LLAMA, (False,), "a grammar acts from the first token on"),
    *_refused("grammar_triggers preserved_tokens", LLAMA, ([],), "a grammar acts from the first token on"),
    *_refused("format", OLLAMA, ("",), "use `response_format`"),
    # the prompt
    *_served("chat_template_kwargs", f"{LLAMA}, {VLLM}, {SGLANG}", "variables for the chat template", RENDERING),
    *_served(
        "enable_thinking",
        SGLANG,
        "whether the model reasons, if its template can switch it; also inside `chat_template_kwargs`",
        RENDERING,
    ),
    *_served(
        "continue_final_message",
        f"{VLLM}, {SGLANG}, {LLAMA}",
        "the model continues the final message, which must be an assistant's text; not with `add_generation_prompt`: "
        "true",
        TEMPLATES,
    ),
    *_served(
        "add_generation_prompt",
        f"{VLLM}, {SGLANG}, {LLAMA}",
        "with false, the prompt ends with the last message and does not begin the assistant's turn",
        TEMPLATES,
    ),
    *_refused("continue_final_message", SGLANG, (False,), "only chats have it", ("completions", "responses")),
    *_refused("add_generation_prompt", VLLM, (True,), "only chats have it", ("completions", "responses")),
    *_served("suffix", f"{OLLAMA}, {VLLM}", "an empty text is no suffix", ("completions",), ("",)),
    *_refused("chat_template", f"{VLLM}, {SGLANG}", ("",), _MODELS_TEMPLATE, RENDERING),
    *_refused("template system raw context", OLLAMA, ("", False, []), _MODELS_TEMPLATE, TEXTS),
    *_refused("documents", VLLM, ([],), "put them into `chat_template_kwargs`", CHAT),
    *_refused("add_special_tokens", VLLM, (False,), "the template writes the special tokens", CHATS),
    *_refused("add_special_tokens", VLLM, (True,), "send tokens instead of text", ("completions", "embeddings")),
    *_refused("generation_prompt", LLAMA, ("",), "use `continue_final_message`", CHATS),
    *_refused("prompt_embeds", VLLM, (), "send text or tokens", ("completions",)),
    *_refused("input_ids", SGLANG, (), "send tokens as the `prompt` of completions"),
    *_refused("mm_processor_kwargs media_io_kwargs", VLLM, ({},), "only text is served", (*EVERY, "tokenize")),
    *_refused("image_data images", f"{LLAMA}, {OLLAMA}", ([],), "only text is served"),
    *_refused("max_dynamic_patch min_dynamic_patch", SGLANG, (), "only text is served", CHAT),
    *_refused("use_audio_in_video", SGLANG, (False,), "only text is served", CHAT),
    # reasoning and tools
    *_served(
        "reasoning",
        f"{OPENROUTER}, {OLLAMA}",
        "`effort` as `reasoning_effort`, `enabled` as `enable_thinking`, `max_tokens` as `reasoning_budget`; with "
        "`exclude`, reasoning is left out of the answer",
        CHAT,
    ),
    *_served(
        "include_reasoning",
        f"{VLLM}, {OPENROUTER}",
        "with false, reasoning is left out of the answer; not with `logprobs` in chats",
        CHATS,
    ),
    *_served("separate_reasoning", SGLANG, "false means `reasoning_format` `none`", CHATS),
    *_refused(
        "include_reasoning separate_reasoning", f"{VLLM}, {SGLANG}, {OPENROUTER}", (True,), _TEXT_ONLY, COMPLETIONS
    ),
    *_refused("stream_reasoning", SGLANG, (True,), "reasoning is streamed as it is generated"),
    *_served(
        "reasoning_format",
        LLAMA,
        "`none` leaves reasoning in the text, with its marks; `deepseek` returns it apart from the text; `auto` is the "
        "same as without the field; `deepseek-legacy` is refused",
        CHATS,
        ("auto",),
    ),
    *_refused("reasoning_format", LLAMA, ("auto", "deepseek", "none"), _TEXT_ONLY, COMPLETIONS),
    *_refused("reasoning_in_content", LLAMA, (False,), "use `reasoning_format`"),
    *_refused("reasoning_control thinking_forced_open", LLAMA, (False,), "use `enable_thinking` or `reasoning_budget`"),
    *_served(
        "reasoning_budget reasoning_budget_tokens thinking_budget_tokens thinking_token_budget",
        f"{LLAMA}, {VLLM}",
        "maximum number of reasoning tokens; then the mark that ends reasoning is forced; 0 also turns reasoning off, "
        "if nothing else says it; -1 is no limit",
        CHATS,
        (-1,),
    ),
    *_refused(
        "reasoning_budget reasoning_budget_tokens thinking_budget_tokens thinking_token_budget",
        f"{LLAMA}, {VLLM}",
        (-1,),
        _TEXT_ONLY,
        COMPLETIONS,
    ),
    *_refused("reasoning_budget_message", LLAMA, ("",), "nothing is written before the mark that ends reasoning"),
    *_refused("parse_tool_calls", LLAMA, (True,), "send no `tools` to get the text", CHATS),
    *_refused("think", OLLAMA, (), "use `enable_thinking` or `reasoning_effort`", TEXTS),
    # what the answer has
    *_served("usage", OPENROUTER, "`include` as `include_usage` of `stream_options`", nothing=({},)),
    *_refused("n_probs", LLAMA, (0,), "use `logprobs`"),
    *_refused("post_sampling_probs", LLAMA, (False,), "probabilities are the model's own"),
    *_refused("prompt_logprobs", VLLM, (), "use `echo` with `logprobs` in completions"),
    *_refused("echo", VLLM, (False,), "only completions have it", CHATS),
    *_refused("skip_special_tokens", f"{VLLM}, {SGLANG}", (True,), "control tokens have no text in an answer"),
    *_accepted("spaces_between_special_tokens", VLLM, BOOLEAN, "control tokens have no text in an answer"),
    *_served("timings_per_token", LLAMA, "each chunk has `timings`; see Timings", TEXTS, (False,)),
    *_refused("timings_per_token", LLAMA, (False,), _NO_TRACES, ("responses",)),
    *_refused("return_tokens return_progress verbose", LLAMA, (False,), _NO_TRACES),
    *_refused("response_fields", LLAMA, ([],), _NO_TRACES),
    *_refused("return_token_ids return_tokens_as_token_ids", VLLM, (False,), _NO_TRACES),
    *_refused("return_hidden_states return_routed_experts return_meta_info", SGLANG, (False,), _NO_TRACES),
    *_refused("return_cached_tokens_details return_prompt_token_ids", SGLANG, (False,), _NO_TRACES),
    *_refused("sse_ping_interval", LLAMA, (), "a silent stream has a ping every 15 seconds"),
    # how the request runs
    *_accepted("request_id", VLLM, TEXT, _OWN_ID, EVERY),
    *_accepted("rid", SGLANG, TEXT, _OWN_ID, EVERY),
    *_accepted("session_id", OPENROUTER, TEXT, _OWN_ID),
    *_served(
        "priority",
        f"{VLLM}, {SGLANG}",
        "more than 0 asks for the class `batch`, less for `interactive`; also by these names; see Priority",
        EVERY,
        (0,),
    ),
    *_refused("cache_prompt", LLAMA, (True,), "prefixes are always shared"),
    *_refused("n_cache_reuse", LLAMA, (0,), "only prefixes are shared"),
    *_served("cache_salt", VLLM, "prefixes are shared only with requests of the same salt"),
    *_accepted("cache_salt", VLLM, TEXT, "embeddings share no prefixes", EMBEDDING),
    *_refused("extra_key", SGLANG, (), "use `cache_salt`", EVERY),
    *_refused("id_slot slot_id", LLAMA, (-1,), "the scheduler places the sequences"),
    *_refused("session_params", SGLANG, ({},), "send the whole conversation"),
    *_refused("lora", LLAMA, ([],), _NO_LORA),
    *_refused("lora_path", SGLANG, ("",), _NO_LORA, EVERY),
    *_refused("backend_sampling", LLAMA, (False,), "it is the server's flag `--backend-top-k`"),
    *_accepted(
        "speculative.n_max speculative.n_min speculative.p_min", LLAMA, NUMBER, "drafts do not change an answer"
    ),
    *_accepted("speculative.type", LLAMA, TEXT, "drafts do not change an answer"),
    *_refused("kv_transfer_params ec_transfer_params vllm_xargs", VLLM, ({},), _RUNS_ALONE),
    *_refused("bootstrap_host bootstrap_port bootstrap_room bootstrap_pair_key", SGLANG, (), _RUNS_ALONE),
    *_refused("data_parallel_rank routed_dp_rank disagg_prefill_dp_rank", SGLANG, (), _RUNS_ALONE),
    *_refused("options", OLLAMA, ({},), "put `temperature`, `top_k` and the like beside `model`", EVERY),
    *_refused("num_ctx", OLLAMA, (), "it is the server's flag `--ctx-len`"),
    *_refused("keep_alive", OLLAMA, (), "it is the server's flag `--idle-limit`", EVERY),
    *_refused("models transforms plugins", OPENROUTER, ([],), "the request goes to one model of this server", EVERY),
    *_refused("provider", OPENROUTER, ({},), "the request goes to one model of this server", EVERY),
    *_refused("route preset", OPENROUTER, ("",), "the request goes to one model of this server", EVERY),
    *_refused("trace debug image_config", OPENROUTER, ({},), _NO_TRACES),
    # embeddings
    *_refused("content", LLAMA, (), "use `input`", EMBEDDING),
    *_refused("embd_normalize", LLAMA, (2,), "embeddings have length 1", EMBEDDING),
    *_refused("normalize use_activation", VLLM, (True,), "embeddings have length 1", EMBEDDING),
    *_refused("embed_dtype", VLLM, ("float32",), "use `encoding_format`", EMBEDDING),
    *_refused("endianness", VLLM, ("native", "little"), "base64 is little-endian", EMBEDDING),
    *_refused("truncate", OLLAMA, (False,), "texts are not cut", EMBEDDING),
    *_refused("input_type", OPENROUTER, (), "write the model's prefix into the text", EMBEDDING),
)
"""In the order of the docs."""


@cache
def other_fields(endpoint: Endpoint) -> Mapping[str, OtherField]:
    """The fields of an endpoint by name."""
    return {each.name: each for each in OTHER_FIELDS if endpoint in each.endpoints}


def markdown() -> str:
    """The table for docs/api.md. Neighbours that differ only in their names share a row."""
    rows = []
    for (servers, endpoints, answer), fields in groupby(OTHER_FIELDS, key=_row):
        names = ", ".join(f"`{each.name}`" for each in fields)
        rows.append(f"| {names} | {servers} | {endpoints} | {answer} |")
    return "\n".join(["| field | server | endpoints | |", "|---|---|---|---|", *rows]) + "\n"


def _row(field: OtherField) -> tuple[str, str, str]:
    return field.servers, ", ".join(field.endpoints), f"{_verdict(field)}: {field.note}"


def _verdict(field: OtherField) -> str:
    if field.verdict != "refused" or not field.nothing:
        return field.verdict
    return f"refused, except {', '.join(f'`{_json(value)}`' for value in field.nothing)}"


def _json(value: object) -> str:
    """A JSON value as text."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case list():
            return f"[{', '.join(map(_json, value))}]"
    return str(value)
