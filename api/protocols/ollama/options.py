"""The `options` of Ollama's requests."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from api.protocols.fields import No, Strict
from api.ranges import Penalty, RepeatPenalty, Share, Stops, Window

Count = Annotated[int, Field(ge=0)]

LOADING: Final = (
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "use_mmap",
    "use_mlock",
    "numa",
    "low_vram",
    "f16_kv",
)
"""Options of loading a model. They have no effect: the flags of the server set how a model is loaded."""


class OllamaOptions(Strict):
    """How an answer is sampled. Null always means the default, which is the model's or the server's, not Ollama's."""

    num_predict: Annotated[int, Field(ge=-2)] | None = None
    """Maximum number of tokens of the answer. 0, -1 and -2 are no limit."""
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompt and answer that the client needs. More than the context has are refused."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """-1 is a random seed."""
    stop: Stops | None = None
    repeat_penalty: RepeatPenalty | None = None
    repeat_last_n: Window | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: Share | None = None
    # no effect with the only value that is accepted
    tfs_z: Literal[1] | None = None
    penalize_newline: No = None
    logits_all: No = None
    vocab_only: No = None
    embedding_only: No = None
    # accepted without effect
    num_keep: int | None = None
    """Tokens that stay when Ollama cuts a conversation. This server never cuts one."""
    num_batch: Count | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: Count | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    numa: bool | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of tokens of the answer; None for no limit."""
        return self.num_predict if self.num_predict and self.num_predict > 0 else None

    @property
    def without_effect(self) -> list[str]:
        """The names of options that are set and that the server's flags decide."""
        return [name for name in LOADING if getattr(self, name) is not None]

    def sampling(self) -> Mapping[str, Any]:
        """The fields of SamplingParams that the options set."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "top_p": self.top_p,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "seed": None if self.seed == -1 else self.seed,
            "repeat_penalty": self.repeat_penalty,
            "repeat_last_n": self.repeat_last_n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "mirostat": self.mirostat,
            "mirostat_tau": self.mirostat_tau,
            "mirostat_eta": self.mirostat_eta,
        }
        return {name: value for name, value in given.items() if value is not None}
