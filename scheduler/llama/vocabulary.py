"""Compares the vocabularies of two models: tokens of one may be drafts for the other only if they mean the same."""

from scheduler.llama.model import BYTE_TOKEN, UNUSED_TOKEN, Model


def difference(model: Model, other: Model) -> str:
    """Returns in which way the tokens of `other` differ from those of `model`; empty if they are the same.

    The larger vocabulary may have unused tokens at its end: Qwen 2.5's files do, more of them in larger models. Whether
    a token controls a conversation does not matter, because base models and chat models differ in that.
    """
    if model.vocabulary_type != other.vocabulary_type:
        return "the kind of tokenizer differs"
    common = min(model.vocab_size, other.vocab_size)
    larger = model if model.vocab_size > common else other
    if not larger.tokens_with(UNUSED_TOKEN).issuperset(range(common, larger.vocab_size)):
        return f"it has {other.vocab_size:,} tokens instead of {model.vocab_size:,}"
    texts, other_texts = model.token_texts(), other.token_texts()
    for token, (text, other_text) in enumerate(zip(texts, other_texts, strict=False)):
        if text != other_text:
            return f"token {token} is {_quoted(other_text)} instead of {_quoted(text)}"
    if differing := sorted(model.tokens_with(BYTE_TOKEN) ^ other.tokens_with(BYTE_TOKEN)):
        return f"token {differing[0]} is a byte in only one of them"
    return ""


def _quoted(text: bytes) -> str:
    return repr(text.decode("utf-8", errors="replace"))
