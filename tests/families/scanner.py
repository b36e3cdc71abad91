"""Cuts C++ source text into tokens. Comments and preprocessor lines are left out."""

import re
from dataclasses import dataclass
from typing import Final

_SCAN: Final = re.compile(
    r"""
      (?P<space>\s+|//[^\n]*|/\*.*?\*/)
    | (?P<pre>(?:(?<=\n)|\A)[ \t]*\#(?:[^\n\\]|\\.)*)
    | (?P<raw>R"(?P<delim>[^()\s\\]{0,16})\((?P<body>.*?)\)(?P=delim)")
    | (?P<str>"(?:[^"\\\n]|\\.)*")
    | (?P<char>'(?:[^'\\\n]|\\.)+')
    | (?P<num>\d[\w.]*)
    | (?P<id>[A-Za-z_]\w*)
    | (?P<punct>::|->|==|!=|&&|\|\||<=|>=|\+=|-=|\.\.\.|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    """str, char, num, id or punct. Literals of several kinds are all `str`."""
    text: str
    """Of a `str`: its value."""
    line: int


def _unescape(body: str) -> str:
    data = bytearray()
    for plain, escape in re.findall(r"([^\\]+)|\\(x[0-9a-fA-F]+|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", body, re.DOTALL):
        if plain:
            data += plain.encode()
        elif escape[0] == "x":
            data.append(int(escape[1:], 16) & 255)
        elif escape[0] in "uU" and len(escape) > 1:
            data += chr(int(escape[1:], 16)).encode()
        else:
            data += _ESCAPES.get(escape, escape).encode()
    return data.decode(errors="replace")


def scan(source: str) -> list[Token]:
    tokens, line, at = [], 1, 0
    while at < len(source):
        match = _SCAN.match(source, at)
        assert match is not None, "the last branch matches any character"
        text, kind = match.group(), str(match.lastgroup)
        if match["raw"] is not None:
            tokens.append(Token("str", match["body"], line))
        elif match["str"] is not None:
            tokens.append(Token("str", _unescape(text[1:-1]), line))
        elif match["space"] is None and match["pre"] is None:
            tokens.append(Token(kind, text, line))
        line += text.count("\n")
        at = match.end()
    return tokens
