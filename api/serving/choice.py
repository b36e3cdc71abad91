"""One of a request's answers, as it grows: tokens in, pieces of text, thought and tool calls out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from api.text.detokenizer import Detokenizer
from api.text.dialects import AnswerParser, CallBegin, Content, Event, Reasoning, merged
from scheduler.messages import Output, TokenLogprob


@dataclass(slots=True)
class Delta:
    """What an answer has grown by."""

    events: list[Event] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Those that the text is made of; what ends an answer without a text of its own is left out."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of these tokens, if asked for."""
    finish_reason: str | None = None


class Choice:
    """Where one answer stands."""

    def __init__(self, piece: Callable[[int], bytes], stops: Sequence[str], parser: AnswerParser | None = None) -> None:
        """Without a `parser` all text is content."""
        self._piece = piece
        self._detokenizer = Detokenizer(piece, stops)
        self._parser = parser
        self._calls_tools = False
        self.finish_reason: str | None = None
        self.cached_tokens = 0
        """Tokens of its prompt that were not computed for it."""
        self.num_reasoning_tokens = 0
        self.prompt_logprobs: list[TokenLogprob] = []
        """Of the prompt's tokens but the first, if asked for."""
        self.total_logprob = 0.0

    @property
    def num_tokens(self) -> int:
        return self._detokenizer.num_tokens

    @property
    def stop(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self._detokenizer.stop

    def push(self, output: Output) -> Delta:
        """Take in what the engine says about this sequence. Once it is finished, there is no more to say."""
        if self.finish_reason is not None:
            return Delta()
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        self.prompt_logprobs += output.prompt_logprobs
        before = self.num_tokens
        events = self._read(output.tokens)
        consumed = output.tokens[: self.num_tokens - before]
        if self._detokenizer.stopped:
            self.finish_reason = "stop"
        elif output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            if text := self._detokenizer.finish():
                events += self._parse(text)
        is_cut = self._parser is not None and self._parser.is_calling
        if self.finish_reason is not None and self._parser is not None:
            events += self._parser.finish()
        self._calls_tools |= any(isinstance(event, CallBegin) for event in events)
        if self.finish_reason == "stop" and self._calls_tools and not is_cut:  # a stop string may stand in a call
            self.finish_reason = "tool_calls"
        logprobs = output.logprobs[: len(consumed)]
        self.total_logprob += sum(logprob for logprob, _ in logprobs)
        if output.finish_reason == "stop" and consumed and not self._piece(consumed[-1]):
            del consumed[-1], logprobs[len(consumed) :]
        return Delta(merged(events), consumed, logprobs, self.finish_reason)

    def _read(self, tokens: Sequence[int]) -> list[Event]:
        if self._parser is None:
            text = self._detokenizer.push(tokens)
            return [Content(text)] if text else []
        events: list[Event] = []
        for token in tokens:  # one by one, so that those of thoughts can be counted
            new = self._parse(self._detokenizer.push([token]))
            self.num_reasoning_tokens += self._parser.is_reasoning or any(isinstance(e, Reasoning) for e in new)
            events += new
        return events

    def _parse(self, text: str) -> list[Event]:
        if self._parser is None:
            return [Content(text)] if text else []
        return self._parser.push(text) if text else []
