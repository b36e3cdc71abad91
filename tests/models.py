"""Small models with random weights, for kinds of memory and attention that the embedded model lacks."""

import string
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

EMBEDDING, INNER, STATE, RANK, KERNEL, LAYERS = 64, 128, 8, 4, 4, 2
HEADS = 4
BERT_CONTEXT = 128
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT_WORDS = ("the", "cat", "sat", "on", "mat", "dog", "ran")
BERT_TOKENS = (
    *BERT_SPECIAL,
    *(f"\u2581{word}" for word in BERT_WORDS),  # U+2581 begins a word
    *(f"\u2581{letter}" for letter in string.ascii_lowercase if letter != "z"),
    *(letter for letter in string.ascii_lowercase if letter != "z"),
)
"""A WordPiece vocabulary that can encode every word without a z."""


class _Reader(gguf.GGUFReader):
    """Reads a vocabulary several times faster: slices of numpy.memmap, which the base takes, are slow."""

    def _get(
        self, offset: int, dtype: npt.DTypeLike, count: int = 1, override_order: object = None
    ) -> npt.NDArray[Any]:
        return np.frombuffer(self.data, dtype, int(count), int(offset))


def write_float16(path: Path, source: str) -> None:
    """Writes the model of `source` with float16 weights, so that the inputs of products are not quantized."""
    _write_converted(path, source, gguf.GGMLQuantizationType.F16)


def write_q4_1(path: Path, source: Path) -> None:
    """Writes the model of `source` with Q4_1 weights.

    Experts, the matrices of embeddings and logits, and matrices whose rows are no whole blocks stay as they are.
    """
    _write_converted(path, str(source), gguf.GGMLQuantizationType.Q4_1, keeps=("token_embd", "output.", "exps", "inp"))


def _write_converted(path: Path, source: str, kind: gguf.GGMLQuantizationType, *, keeps: tuple[str, ...] = ()) -> None:
    reader = _Reader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.")):
            first, *inner = field.types
            writer.add_key_value(name, field.contents(), first, inner[0] if inner else None)
    for tensor in reader.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if (
            weights.ndim == 1
            or weights.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]
            or any(part in tensor.name for part in keeps)
        ):
            writer.add_tensor(tensor.name, weights)
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    _write(writer)


def write_mamba(path: Path, vocabulary: str, vocabulary_kind: str = "gpt2") -> None:
    """Writes a recurrent model (Gu and Dao, Mamba, 2023) with the vocabulary of the model file `vocabulary`.

    `vocabulary_kind` is the tokenizer type that the file declares.
    """
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "mamba")
    num_tokens = _copy_vocabulary(_Reader(vocabulary), writer, vocabulary_kind)
    writer.add_context_length(4096)
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(LAYERS)
    writer.add_ssm_conv_kernel(KERNEL)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd.weight": (num_tokens, EMBEDDING)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.ssm_in.weight": (2 * INNER, EMBEDDING),
            f"blk.{layer}.ssm_conv1d.weight": (INNER, KERNEL),
            f"blk.{layer}.ssm_x.weight": (RANK + 2 * STATE, INNER),
            f"blk.{layer}.ssm_dt.weight": (INNER, RANK),
            f"blk.{layer}.ssm_out.weight": (EMBEDDING, INNER),
        }
    for name, shape in shapes.items():
        writer.add_tensor(name, _weights(random, shape))
    ones = {"output_norm.weight": EMBEDDING}
    for layer in range(LAYERS):
        ones |= {f"blk.{layer}.attn_norm.weight": EMBEDDING, f"blk.{layer}.ssm_d": INNER}
        for name in ("ssm_conv1d.bias", "ssm_dt.bias"):
            writer.add_tensor(f"blk.{layer}.{name}", np.full(INNER, -2.0 * (name == "ssm_dt.bias"), np.float32))
        decay = -np.tile(np.arange(1, STATE + 1, dtype=np.float32), (INNER, 1))
        writer.add_tensor(f"blk.{layer}.ssm_a", decay)
    for name, size in ones.items():
        writer.add_tensor(name, np.ones(size, np.float32))
    _write(writer)


def write_llama(path: Path, vocabulary: str) -> None:
    """Writes a model like Llama (Touvron et al., 2023) with the vocabulary of the model file `vocabulary`."""
    random = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    num_tokens = _copy_vocabulary(_Reader(vocabulary), writer)
    writer.add_context_length(4096)
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_block_count(LAYERS)
    writer.add_layer_norm_rms_eps(1e-6)
    shapes = {"token_embd.weight": (num_tokens, EMBEDDING)}
    norms = ["output_norm"]
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.attn_{name}.weight": (EMBEDDING, EMBEDDING) for name in ("q", "k", "v", "output")}
        shapes |= {f"{block}.ffn_{name}.weight": (INNER, EMBEDDING) for name in ("gate", "up")}
        shapes |= {f"{block}.ffn_down.weight": (EMBEDDING, INNER)}
        norms += [f"{block}.attn_norm", f"{block}.ffn_norm"]
    for name, shape in shapes.items():
        writer.add_tensor(name, _weights(random, shape))
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(EMBEDDING, np.float32))
    _write(writer)


def write_windowed(path: Path, window: int) -> None:
    """Writes a model like Gemma 3 (2025): one layer with a sliding window, then one that attends to all tokens.

    It has the vocabulary of BERT_TOKENS. The weights are float32, so rounding changes its logits very little.
    """
    random = np.random.default_rng(4)
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_tokenizer_model("bert")
    writer.add_token_list(list(BERT_TOKENS))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(BERT_TOKENS))
    writer.add_context_length(1024)
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(EMBEDDING // HEADS)
    writer.add_value_length(EMBEDDING // HEADS)
    writer.add_block_count(LAYERS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(window)
    writer.add_uint32("gemma3.attention.sliding_window_pattern", LAYERS)
    shapes = {"token_embd.weight": (len(BERT_TOKENS), EMBEDDING)}
    norms = {"output_norm": EMBEDDING}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.attn_{name}.weight": (EMBEDDING, EMBEDDING) for name in ("q", "k", "v", "output")}
        shapes |= {f"{block}.ffn_{name}.weight": (INNER, EMBEDDING) for name in ("gate", "up")}
        shapes |= {f"{block}.ffn_down.weight": (EMBEDDING, INNER)}
        norms |= {f"{block}.{name}": EMBEDDING for name in ("attn_norm", "post_attention_norm")}
        norms |= {f"{block}.{name}": EMBEDDING for name in ("ffn_norm", "post_ffw_norm")}
        norms |= {f"{block}.attn_{name}_norm": EMBEDDING // HEADS for name in ("q", "k")}
    for name, shape in shapes.items():
        writer.add_tensor(name, 4 * _weights(random, shape))
    for name, size in norms.items():
        writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))
    _write(writer)


def write_bert(
    path: Path, pooling: gguf.PoolingType | None, *, special: bool = True, rerank_template: str | None = None
) -> None:
    """Writes an encoder (Devlin et al., BERT, 2018) with its own vocabulary.

    Without `pooling`, the file names no pooling type. Without `special`, it does not declare the tokens that begin and
    end a text. With the pooling `rank` it has a head that scores a text.
    """
    random = np.random.default_rng(2)
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_tokenizer_model("bert")
    writer.add_token_list(list(BERT_TOKENS))
    kinds = [gguf.TokenType.CONTROL] * len(BERT_SPECIAL)
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (len(BERT_TOKENS) - len(kinds))])
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    if special:
        writer.add_bos_token_id(2)
        writer.add_sep_token_id(3)
    writer.add_context_length(BERT_CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_block_count(LAYERS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    shapes = {
        "token_embd.weight": (len(BERT_TOKENS), EMBEDDING),
        "token_types.weight": (2, EMBEDDING),
        "position_embd.weight": (BERT_CONTEXT, EMBEDDING),
    }
    norms = ["token_embd_norm"]
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{name}.weight": (EMBEDDING, EMBEDDING) for name in ("q", "k", "v", "output")}
        shapes |= {
            f"blk.{layer}.ffn_up.weight": (INNER, EMBEDDING),
            f"blk.{layer}.ffn_down.weight": (EMBEDDING, INNER),
        }
        norms += [f"blk.{layer}.attn_output_norm", f"blk.{layer}.layer_output_norm"]
    if pooling is gguf.PoolingType.RANK:
        shapes |= {"cls.weight": (EMBEDDING, EMBEDDING), "cls.output.weight": (1, EMBEDDING)}
    if rerank_template is not None:
        writer.add_string("tokenizer.chat_template.rerank", rerank_template)
    for name, shape in shapes.items():
        writer.add_tensor(name, 4 * _weights(random, shape))
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(EMBEDDING, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(EMBEDDING, np.float32))
    _write(writer)


def write_t5_encoder(path: Path, vocabulary: str) -> None:
    """Writes a T5 encoder (Raffel et al., 2020), which llama.cpp runs with `llama_encode`.

    It has the vocabulary of the model file `vocabulary`.
    """
    random = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "t5encoder")
    num_tokens = _copy_vocabulary(_Reader(vocabulary), writer)
    writer.add_context_length(512)
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_key_length(EMBEDDING // HEADS)
    writer.add_value_length(EMBEDDING // HEADS)
    writer.add_block_count(LAYERS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_relative_attn_buckets_count(32)
    shapes = {"token_embd.weight": (num_tokens, EMBEDDING)}
    norms = ["enc.output_norm"]
    for layer in range(LAYERS):
        block = f"enc.blk.{layer}"
        shapes |= {f"{block}.attn_{name}.weight": (EMBEDDING, EMBEDDING) for name in ("q", "k", "v", "o")}
        shapes |= {
            f"{block}.attn_rel_b.weight": (32, HEADS),
            f"{block}.ffn_up.weight": (INNER, EMBEDDING),
            f"{block}.ffn_down.weight": (EMBEDDING, INNER),
        }
        norms += [f"{block}.attn_norm", f"{block}.ffn_norm"]
    for name, shape in shapes.items():
        writer.add_tensor(name, _weights(random, shape))
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(EMBEDDING, np.float32))
    _write(writer)


def _weights(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    weights: NDArray[np.float32] = (random.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    return weights


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_vocabulary(source: gguf.GGUFReader, target: gguf.GGUFWriter, vocabulary_kind: str = "gpt2") -> int:
    for name, field in source.fields.items():
        if name.startswith("tokenizer."):
            kind, *inner = field.types
            value = vocabulary_kind if name == "tokenizer.ggml.model" else field.contents()
            target.add_key_value(name, value, kind, inner[0] if inner else None)
    return len(source.fields["tokenizer.ggml.tokens"].data)
