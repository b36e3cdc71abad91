"""Grammars are compiled once, and the memory for them is bounded."""

from queue import Queue

from llguidance import LLTokenizer

from scheduler.grammar import CACHE_SIZE, Compiled, Grammar, GrammarCompiler
from scheduler.messages import SamplingParams, Submit


def compiled(compiler: GrammarCompiler, source: str) -> Grammar:
    results: Queue[Compiled] = Queue()
    compiler.compile(Submit(1, [1], 5, SamplingParams(), grammar=source), results.put)
    grammar = results.get(timeout=60).grammar
    assert isinstance(grammar, Grammar)
    return grammar


def test_the_kept_grammars_are_bounded_by_the_length_of_their_sources() -> None:
    compiler = GrammarCompiler(lambda: LLTokenizer("byte"), max_chars=10_000)
    for number in range(40):
        compiled(compiler, f'start: "{number:01000}"')
        assert 0 < compiler.num_chars <= 10_000
    compiled(compiler, f'start: "{"x" * 20_000}"')  # larger than the bound
    assert compiler.num_chars <= 10_000


def test_the_kept_grammars_are_bounded_by_number() -> None:
    compiler = GrammarCompiler(lambda: LLTokenizer("byte"))
    for number in range(2 * CACHE_SIZE):
        compiled(compiler, f'start: "{number:03}"')
    assert compiler.num_chars == CACHE_SIZE * len('start: "000"')


def test_an_object_may_have_two_thousand_optional_properties() -> None:
    """With llguidance's default limit the comma after the first property broke the grammar."""
    names = ",".join(f'"p{number}":{{"type":"null"}}' for number in range(2000))
    source = f'start: %json {{"type":"object","properties":{{{names}}},"additionalProperties":false}}'
    grammar = compiled(GrammarCompiler(lambda: LLTokenizer("byte")), source)
    for byte in b'{"p7":null,"p1999":null}':
        grammar.matcher.compute_bitmask()
        grammar.advance(byte, forces=False)
    assert grammar.is_complete
