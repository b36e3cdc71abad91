"""Makes the grammars that answers must match, from every syntax."""

from api.text.dialects.grammars.answer import MAX_CALLS, answer_grammar
from api.text.dialects.grammars.lark import TokenId, one_of

__all__ = ["MAX_CALLS", "TokenId", "answer_grammar", "one_of"]
