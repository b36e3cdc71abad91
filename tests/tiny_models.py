"""Writes one tiny model of random weights for each kind of memory and attention, with a small vocabulary of its own.

The weights are float32, and scaled so that the logits depend on each token of a prompt far more than on rounding.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

LAYERS, EMBEDDING, FORWARD, CONTEXT = 2, 64, 96, 256
HEADS, HEAD = 2, 32
"""32 is the smallest head size that a quantized KV cache can have."""
WINDOW = 16
"""Size of the sliding window in tokens."""
EXPERTS = 2
RANK, ROPE = 32, 32
"""Of multi-head latent attention: size of the compressed KV, size of the part of a head with a position."""
INNER, STATE, STEP_RANK, KERNEL = 2 * EMBEDDING, 8, 4, 4
"""Of Mamba's layers."""

WORDS = ("the", "cat", "sat", "on", "mat", "dog", "ran", "and", "a", "big")
TOKENS = (
    ("<unk>", gguf.TokenType.UNKNOWN),
    ("<s>", gguf.TokenType.CONTROL),
    ("</s>", gguf.TokenType.CONTROL),
    ("<|im_start|>", gguf.TokenType.CONTROL),
    ("<|im_end|>", gguf.TokenType.CONTROL),
    *((f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)),
    ("\u2581", gguf.TokenType.NORMAL),  # U+2581 begins a word
    *((f"\u2581{word}", gguf.TokenType.NORMAL) for word in WORDS),
)
"""A SentencePiece vocabulary that can encode every text."""

Tokens = Sequence[tuple[str, gguf.TokenType]]
Values = dict[str, int | float | list[int]]
Shapes = dict[str, tuple[int, ...]]


def _attention(block: str) -> Shapes:
    size = HEADS * HEAD
    return {
        f"{block}.attn_norm": (EMBEDDING,),
        **{f"{block}.attn_{name}": (size, EMBEDDING) for name in ("q", "k", "v")},
        f"{block}.attn_output": (EMBEDDING, size),
    }


def _forward(block: str) -> Shapes:
    return {
        f"{block}.ffn_norm": (EMBEDDING,),
        f"{block}.ffn_gate": (FORWARD, EMBEDDING),
        f"{block}.ffn_up": (FORWARD, EMBEDDING),
        f"{block}.ffn_down": (EMBEDDING, FORWARD),
    }


def _mamba(block: str) -> Shapes:
    return {
        f"{block}.attn_norm": (EMBEDDING,),
        f"{block}.ssm_in": (2 * INNER, EMBEDDING),
        f"{block}.ssm_conv1d": (INNER, KERNEL),
        f"{block}.ssm_conv1d.bias": (INNER,),
        f"{block}.ssm_x": (STEP_RANK + 2 * STATE, INNER),
        f"{block}.ssm_dt": (INNER, STEP_RANK),
        f"{block}.ssm_dt.bias": (INNER,),
        f"{block}.ssm_a": (INNER, STATE),
        f"{block}.ssm_d": (INNER,),
        f"{block}.ssm_out": (EMBEDDING, INNER),
    }


def _dense() -> tuple[str, Values, Shapes]:
    """Llama (Touvron et al., 2023)."""
    shapes: Shapes = {}
    for layer in range(LAYERS):
        shapes |= _attention(f"blk.{layer}") | _forward(f"blk.{layer}")
    return "llama", {}, shapes


def _experts() -> tuple[str, Values, Shapes]:
    """Mixtral (Jiang et al., 2024). Every token uses all experts, because rounding could change a selection."""
    shapes: Shapes = {}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= _attention(block) | {
            f"{block}.ffn_norm": (EMBEDDING,),
            f"{block}.ffn_gate_inp": (EXPERTS, EMBEDDING),
            f"{block}.ffn_gate_exps": (EXPERTS, FORWARD, EMBEDDING),
            f"{block}.ffn_up_exps": (EXPERTS, FORWARD, EMBEDDING),
            f"{block}.ffn_down_exps": (EXPERTS, EMBEDDING, FORWARD),
        }
    return "llama", {"expert_count": EXPERTS, "expert_used_count": EXPERTS}, shapes


def _sliding_window() -> tuple[str, Values, Shapes]:
    """Gemma 3 (2025): its first layer has a sliding window, its second layer attends to all tokens."""
    shapes: Shapes = {}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= _attention(block) | _forward(block)
        shapes |= {f"{block}.{name}_norm": (EMBEDDING,) for name in ("post_attention", "post_ffw")}
        shapes |= {f"{block}.attn_{name}_norm": (HEAD,) for name in ("q", "k")}
    return "gemma3", {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2}, shapes


def _latent() -> tuple[str, Values, Shapes]:
    """DeepSeek V2 (2024): multi-head latent attention, whose KV is one compressed row for all heads."""
    values: Values = {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": RANK,
        "attention.kv_lora_rank": RANK,
        "attention.key_length": RANK + ROPE,
        "attention.value_length": RANK,
        "attention.key_length_mla": HEAD + ROPE,
        "attention.value_length_mla": HEAD,
        "rope.dimension_count": ROPE,
        "leading_dense_block_count": LAYERS,
        "expert_shared_count": 0,
        "expert_feed_forward_length": FORWARD,
    }
    shapes: Shapes = {}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= _forward(block) | {
            f"{block}.attn_norm": (EMBEDDING,),
            f"{block}.attn_q_a": (RANK, EMBEDDING),
            f"{block}.attn_q_a_norm": (RANK,),
            f"{block}.attn_q_b": (HEADS * (HEAD + ROPE), RANK),
            f"{block}.attn_kv_a_mqa": (RANK + ROPE, EMBEDDING),
            f"{block}.attn_kv_a_norm": (RANK,),
            f"{block}.attn_k_b": (HEADS, RANK, HEAD),
            f"{block}.attn_v_b": (HEADS, HEAD, RANK),
            f"{block}.attn_output": (EMBEDDING, HEADS * HEAD),
        }
    return "deepseek2", values, shapes


def _hybrid() -> tuple[str, Values, Shapes]:
    """Jamba (Lieber et al., 2024): a layer of Mamba, then a layer of attention."""
    block = "blk.0"
    shapes = _mamba(block) | _forward(block) | _attention("blk.1") | _forward("blk.1")
    shapes |= {f"{block}.ssm_dt_norm": (STEP_RANK,), f"{block}.ssm_b_norm": (STATE,), f"{block}.ssm_c_norm": (STATE,)}
    return "jamba", {"attention.head_count_kv": [0, HEADS]} | _SSM, shapes


def _recurrent() -> tuple[str, Values, Shapes]:
    """Mamba (Gu and Dao, 2023)."""
    shapes: Shapes = {}
    for layer in range(LAYERS):
        shapes |= _mamba(f"blk.{layer}")
    return "mamba", {"attention.head_count": 0, "attention.head_count_kv": 0, "feed_forward_length": 0} | _SSM, shapes


def _cogvlm() -> tuple[str, Values, Shapes]:
    """CogVLM (Wang et al., 2023), for which llama.cpp returns the logits of another token than requested."""
    size, shapes = HEADS * HEAD, Shapes()
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= _forward(block) | {f"{block}.attn_norm": (EMBEDDING,)}
        for name, feed in (("attn", "ffn"), ("vis_attn", "vis")):
            shapes |= {f"{block}.{name}_qkv": (3 * size, EMBEDDING), f"{block}.{name}_output": (EMBEDDING, size)}
            shapes |= {f"{block}.{feed}_{part}": (FORWARD, EMBEDDING) for part in ("gate", "up")}
            shapes |= {f"{block}.{feed}_down": (EMBEDDING, FORWARD)}
    return "cogvlm", {}, shapes


_SSM: Values = {
    "ssm.conv_kernel": KERNEL,
    "ssm.inner_size": INNER,
    "ssm.state_size": STATE,
    "ssm.time_step_rank": STEP_RANK,
}

KINDS: dict[str, Callable[[], tuple[str, Values, Shapes]]] = {
    "dense": _dense,
    "experts": _experts,
    "sliding_window": _sliding_window,
    "latent": _latent,
    "hybrid": _hybrid,
    "recurrent": _recurrent,
}
"""The kinds that are served."""
REFUSED = {"cogvlm": _cogvlm}


def write_tiny_model(path: Path, kind: str, seed: int = 1, tokens: Tokens = TOKENS) -> None:
    """Writes a model of one of KINDS or REFUSED. Encoders: see tests.models.write_bert.

    `seed`: of the weights. `tokens`: the texts and the types of the tokens.
    """
    architecture, values, shapes = (KINDS | REFUSED)[kind]()
    writer = gguf.GGUFWriter(path, architecture)
    _write_vocabulary(writer, tokens)
    common: Values = {
        "context_length": CONTEXT,
        "embedding_length": EMBEDDING,
        "feed_forward_length": FORWARD,
        "block_count": LAYERS,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": HEAD,
    }
    for name, value in (common | values).items():
        key = f"{architecture}.{name}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    random = np.random.default_rng(seed)
    outer: Shapes = {
        "token_embd": (len(tokens), EMBEDDING),
        "output_norm": (EMBEDDING,),
        "output": (len(tokens), EMBEDDING),
    }
    for name, shape in (outer | shapes).items():
        is_plain = name.endswith((".bias", ".ssm_a", ".ssm_d"))
        writer.add_tensor(name if is_plain else f"{name}.weight", _weights(random, name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _weights(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name.endswith("ssm_a"):
        weights = -np.tile(np.linspace(0.1, 1, STATE), (INNER, 1))  # a decay
    elif name.endswith("ssm_dt.bias"):
        weights = np.full(shape, -2.0)  # small time steps: the state remembers
    elif name.endswith(".bias"):
        weights = np.zeros(shape)
    elif len(shape) == 1:
        weights = np.ones(shape)
    else:
        weights = random.standard_normal(shape) / np.sqrt(shape[-1])
        weights *= 2 if name.startswith("output") else np.sqrt(EMBEDDING) if name.startswith("token_embd") else 1
    return weights.astype(np.float32)


def _write_vocabulary(writer: gguf.GGUFWriter, tokens: Tokens) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
