"""Small models of random weights, for kinds of memory that the embedded model does not have."""

from pathlib import Path

import gguf
import numpy as np

EMBEDDING, INNER, STATE, RANK, KERNEL, LAYERS = 64, 128, 8, 4, 4, 2


def write_mamba(path: Path, vocabulary: str) -> None:
    """A recurrent model (Gu and Dao, Mamba, 2023) with the vocabulary of another model's file."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "mamba")
    num_tokens = _copy_vocabulary(gguf.GGUFReader(vocabulary), writer)
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
        writer.add_tensor(name, (random.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32))
    ones = {"output_norm.weight": EMBEDDING}
    for layer in range(LAYERS):
        ones |= {f"blk.{layer}.attn_norm.weight": EMBEDDING, f"blk.{layer}.ssm_d": INNER}
        for name in ("ssm_conv1d.bias", "ssm_dt.bias"):
            writer.add_tensor(f"blk.{layer}.{name}", np.full(INNER, -2.0 * (name == "ssm_dt.bias"), np.float32))
        decay = -np.tile(np.arange(1, STATE + 1, dtype=np.float32), (INNER, 1))
        writer.add_tensor(f"blk.{layer}.ssm_a", decay)
    for name, size in ones.items():
        writer.add_tensor(name, np.ones(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_vocabulary(source: gguf.GGUFReader, target: gguf.GGUFWriter) -> int:
    for name, field in source.fields.items():
        if name.startswith("tokenizer."):
            kind, *inner = field.types
            target.add_key_value(name, field.contents(), kind, inner[0] if inner else None)
    return len(source.fields["tokenizer.ggml.tokens"].data)
