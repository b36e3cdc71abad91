"""The tokens of a query and a document, as models that rank documents expect them."""

import re

from api.text.tokenizer import Tokenizer

_PLACES = re.compile(r"(\{query\}|\{document\})")


def pair(tokenizer: Tokenizer, query: str, document: str) -> list[int]:
    """The tokens of a pair, the same as those of llama-server. But control tokens in the texts stay text."""
    if tokenizer.rerank_template is None:
        before, between, after = tokenizer.pair_marks
        texts = (tokenizer.encode(text, parse_special=False) for text in (query, document))
        first, second = texts
        return [*before, *first, *between, *second, *after]
    texts_of = {"{query}": query, "{document}": document}
    parts = _PLACES.split(tokenizer.rerank_template)
    if not any(control in text for control in tokenizer.control_texts for text in texts_of.values()):
        return tokenizer.encode("".join(texts_of.get(part, part) for part in parts), parse_special=True)
    tokens: list[int] = []
    for part in parts:
        is_own = part not in texts_of
        tokens += tokenizer.encode(texts_of.get(part, part), parse_special=is_own, continues=bool(tokens))
    return tokens
