"""The wire types of Ollama's answers."""

from typing import Any, Literal

from api.protocols.types import Answer, TokenLogprob


class OllamaError(Answer):
    error: str


class OllamaProgress(Answer):
    """What the answers to a conversation and to a prompt have in common. The last line of a stream has all fields."""

    model: str
    created_at: str
    """When the line was written."""
    done: bool
    done_reason: Literal["stop", "length", "load"] | None = None
    total_duration: int | None = None
    """Nanoseconds since the request arrived, as all durations."""
    load_duration: int | None = None
    """How long the request waited until its model was loaded."""
    prompt_eval_count: int | None = None
    """Tokens of the prompt, those that were found in the cache included."""
    prompt_eval_duration: int | None = None
    """Until the first token, without the time in the queue."""
    eval_count: int | None = None
    """Tokens of the answer."""
    eval_duration: int | None = None
    """From the first token to the last one."""
    logprobs: list[TokenLogprob] | None = None


class OllamaCalledFunction(Answer):
    index: int
    name: str
    arguments: dict[str, Any]


class OllamaCall(Answer):
    id: str
    function: OllamaCalledFunction


class OllamaAnswerMessage(Answer):
    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[OllamaCall] | None = None


class OllamaChatAnswer(OllamaProgress):
    message: OllamaAnswerMessage


class OllamaGenerateAnswer(OllamaProgress):
    response: str
    thinking: str | None = None


class OllamaEmbeddings(Answer):
    model: str
    embeddings: list[list[float]]
    """The components of embeddings of norm 1."""
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbedding(Answer):
    embedding: list[float]


class OllamaDetails(Answer):
    parent_model: str
    format: Literal["gguf"]
    family: str
    """llama.cpp's name of the architecture."""
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModel(Answer):
    name: str
    model: str
    """The same as `name`."""
    modified_at: str
    size: int
    """Bytes of the model's files."""
    digest: str
    """Changes with the files. It is not a hash of their contents."""
    details: OllamaDetails


class OllamaModels(Answer):
    models: list[OllamaModel]


class OllamaLoadedModel(Answer):
    name: str
    model: str
    size: int
    """Bytes of the weights and of the KV memory."""
    digest: str
    details: OllamaDetails
    expires_at: str
    """When it is unloaded if nobody uses it; the year 9999 means never."""
    size_vram: int
    """Bytes of `size` that are on a GPU."""
    context_length: int


class OllamaLoadedModels(Answer):
    models: list[OllamaLoadedModel]


class OllamaModelInfo(Answer):
    modelfile: str
    parameters: str
    """The values of its `model.yaml` for fields that a request does not set, one a line."""
    template: str
    """Its chat template: Jinja, not Ollama's language."""
    details: OllamaDetails
    model_info: dict[str, str | int | float | bool]
    """The values in its file, without arrays."""
    capabilities: list[Literal["completion", "tools", "thinking", "insert", "embedding", "rerank"]]
    modified_at: str


class OllamaVersion(Answer):
    version: str
    """The version of Ollama whose API this server follows."""
