"""Reads the test cases out of the peer's test file."""

from dataclasses import dataclass

from tests.families.cases import Case
from tests.families.interpreter import Interpreter
from tests.families.objects import NotUnderstoodError
from tests.families.scanner import scan


@dataclass
class Extracted:
    cases: list[Case]
    written: int
    """Number of `.test(` in the file, including those in comments."""
    sites: int
    """Number of `.test(` outside of comments."""
    reached: int
    """Number of sites that made at least one case."""
    problems: list[tuple[int, str]]
    """Line and reason of every site without a case, and of every case that could not be read."""

    @property
    def share(self) -> float:
        """Of the sites that were reached, from 0 to 1."""
        return self.reached / max(self.sites, 1)


def extract(source: str) -> Extracted:
    """`source`: C++ like that of the peer's tests/test-chat.cpp."""
    interpreter = Interpreter(scan(source))
    interpreter.run()
    tokens, cases, bad = interpreter.tokens, [], []
    for built in interpreter.cases:
        line = tokens[built.site].line
        try:
            cases.append(Case.of(built, line))
        except (NotUnderstoodError, ValueError, TypeError, AttributeError, LookupError) as problem:
            bad.append((line, f"{type(problem).__name__}: {problem}"))
    sites = interpreter.sites()
    reached = {built.site for built in interpreter.cases} & set(sites)
    missing = [(tokens[s].line, interpreter.problems.get(s, "never reached")) for s in sites if s not in reached]
    failed = {line for line, _ in bad}
    count = sum(tokens[s].line not in failed for s in reached)
    return Extracted(cases, source.count(".test("), len(sites), count, missing + bad)
