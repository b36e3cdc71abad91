"""How one model is asked and how it answers: the prompts, the grammar and the parser that its template calls for."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from api.text.dialects import words
from api.text.dialects.families import family_of
from api.text.dialects.grammars import TokenId, answer_grammar
from api.text.dialects.history import Message, as_objects
from api.text.dialects.ids import call_id, short_id, with_names_in_ids, with_short_ids
from api.text.dialects.marks import marks_of
from api.text.dialects.parsing import AnswerParser
from api.text.dialects.probing import learn
from api.text.dialects.syntax import SHORT_ID, AnswerSyntax, Learned, Thoughts
from api.text.dialects.tools import Tool, ToolUse
from api.text.template import ChatTemplate


class Dialect:
    """The tool calls and the reasoning of one model, in prompts, in grammars and in answers."""

    def __init__(self, learned: Learned, *, name: str = "native") -> None:
        """If the template shows no syntax of calls, the prompt explains one in words."""
        self.name = name
        if learned.syntax.calls is None:
            self.name = "words"
            learned = replace(learned, lists_tools=False, renders_calls=False, renders_results=False)
        self.learned = learned
        calls = learned.syntax.calls or words.CALLS
        self.syntax: AnswerSyntax = replace(learned.syntax, calls=calls)
        self._has_short_ids = calls.id_pattern == SHORT_ID

    @property
    def thinks(self) -> bool:
        return self.syntax.thoughts is not None

    @property
    def thoughts(self) -> Thoughts | None:
        """How the model marks its reasoning; None if it does not reason."""
        return self.syntax.thoughts

    @property
    def marks(self) -> frozenset[str]:
        """All literal texts of its syntax. Control tokens in them are part of an answer's text."""
        return marks_of(self.syntax)

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """The messages and the `tools` in the form that the template expects."""
        learned = self.learned
        if self._has_short_ids:
            messages = [with_short_ids(message) for message in messages]
        if learned.names_in_ids:
            messages = with_names_in_ids(messages)
        assert self.syntax.calls is not None, "a dialect has calls"
        if not learned.renders_calls:
            messages = words.with_written_calls(messages, self.syntax.calls, keeps_results=learned.renders_results)
        elif not learned.arguments_as_text:
            messages = [as_objects(message) for message in messages]
        if tools and not learned.lists_tools:
            messages = words.with_instructions(messages, tools, self.syntax.calls)
        elif tools and learned.lists_tools_in_system and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": ""}, *messages]
        listed = [tool.as_json() for tool in tools] if learned.lists_tools else []
        return list(messages), listed or None

    def grammar(self, use: ToolUse | None, *, content: str | None, token_id: TokenId, prompt_tail: str = "") -> str:
        """The llguidance grammar that an answer must match; empty if any answer is valid.

        `content` is the right-hand side of a rule for text answers; None allows any text. A reasoning model may reason
        before its text or its calls.
        """
        if use is None and content is None:
            return ""
        return answer_grammar(
            self.syntax, use, content=content, token_id=token_id, is_thinking=self.is_thinking(prompt_tail)
        )

    def parser(
        self,
        use: ToolUse | None,
        prompt_tail: str = "",
        *,
        keeps_reasoning: bool = False,
        has_bound_text: bool = False,
    ) -> AnswerParser | None:
        """A parser for one answer; None if the whole answer is content.

        `keeps_reasoning`: reasoning and its marks are content. `has_bound_text`: a grammar decides where the text ends,
        so the marks that end a turn are part of it.
        """
        syntax = replace(self.syntax, ends=()) if has_bound_text else self.syntax
        if use is None and not (syntax.thoughts or syntax.content or syntax.noise or syntax.ends):
            return None
        return AnswerParser(
            syntax,
            use,
            is_thinking=self.is_thinking(prompt_tail),
            keeps_reasoning=keeps_reasoning,
            make_id=self.make_id,
        )

    def make_id(self) -> str:
        return short_id() if self._has_short_ids else call_id()

    def is_thinking(self, prompt_tail: str) -> bool:
        """Whether the prompt ends inside the model's reasoning."""
        thoughts = self.syntax.thoughts
        if thoughts is not None and not thoughts.begins:
            return not prompt_tail.rstrip().endswith(thoughts.ends)  # each prompt begins it
        return bool(self.begun_thought(prompt_tail))

    def begun_thought(self, prompt_tail: str) -> str:
        """The mark and the text of the reasoning that the prompt has begun; empty if it has begun none."""
        thoughts = self.syntax.thoughts
        if thoughts is None:
            return ""
        begun = max((prompt_tail.rfind(mark) for mark in thoughts.begins if mark), default=-1)
        ended = max((prompt_tail.rfind(mark) for mark in thoughts.ends), default=-1)
        return prompt_tail[begun:] if begun > ended else ""


def dialect_of(template: ChatTemplate, end_texts: Collection[str] = ()) -> Dialect:
    """The dialect of a model, learned from its chat template.

    `end_texts`: the texts of the vocabulary's tokens that end an answer. Other marks at the end of a turn end it, too.
    """
    learned = learn(template)
    family = family_of(template.source)
    if family is not None:
        learned = family.learn(learned)
    syntax = _fitted(learned.syntax, template.end_marks, end_texts)
    return Dialect(replace(learned, syntax=syntax), name=family.name if family is not None else "native")


def _fitted(syntax: AnswerSyntax, end_marks: Sequence[str], end_texts: Collection[str]) -> AnswerSyntax:
    """The syntax for a vocabulary: what such a token ends, no other mark needs to end."""
    ends = dict.fromkeys((*syntax.ends, *end_marks))
    syntax = replace(syntax, ends=tuple(mark for mark in ends if mark not in end_texts))
    if syntax.calls is not None and syntax.calls.end.strip() in end_texts:
        noise = (*syntax.noise, syntax.calls.end)
        syntax = replace(syntax, calls=replace(syntax.calls, end=""), noise=noise)
    return syntax
