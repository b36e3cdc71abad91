"""One answer of a request while it is generated: tokens in; text, reasoning and tool calls out."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from api.text.detokenizer import Detokenizer
from api.text.dialects import AnswerParser, CallBegin, Content, Event, Reasoning, merged
from scheduler.messages import Output, TokenLogprob


@dataclass(slots=True)
class Delta:
    """The new part of an answer."""

    events: list[Event] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """The tokens of the text. A final token without text is left out."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Log probabilities of these tokens, if requested."""
    finish_reason: str | None = None


class Choice:
    """The state of one answer."""

    def __init__(
        self,
        piece: Callable[[int], bytes],
        stops: Sequence[str],
        parser: AnswerParser | None = None,
        *,
        begun: str = "",
        stop_tokens: Collection[int] = (),
        min_tokens: int = 0,
    ) -> None:
        """Without a `parser`, all text is content. `begun`: content before the first token, which the prompt has.

        `stop_tokens` end the answer once it has `min_tokens` tokens.
        """
        self._stops = stops
        self._stop_tokens = stop_tokens
        self._min_tokens = min_tokens
        self._is_at_stop_token = False
        """Whether the next token is one of the stop tokens, which has no text and ends the answer."""
        self._piece = self._with_stop_token(piece) if stop_tokens else piece
        self._detokenizer = Detokenizer(self._piece, stops)
        self._parser = parser
        self._begun = begun
        self._calls_tools = False
        self.finish_reason: str | None = None
        self.cached_tokens = 0
        """Tokens of the prompt that were found in the KV cache instead of computed."""
        self.num_reasoning_tokens = 0
        self.accepted_drafts = 0
        """Drafted tokens that became part of the answer."""
        self.rejected_drafts = 0
        """Drafted tokens that did not."""
        self.prompt_logprobs: list[TokenLogprob] = []
        """Log probabilities of the prompt's tokens except the first, if requested."""
        self.total_logprob = 0.0

    @property
    def num_tokens(self) -> int:
        return self._detokenizer.num_tokens

    @property
    def stop(self) -> str | None:
        """The client's stop string that ended the answer; None if none did."""
        return self._detokenizer.stop if self._detokenizer.stop in self._stops else None

    def push(self, output: Output) -> Delta:
        """Process an output of this sequence. Returns the new part of the answer; nothing once it is finished."""
        if self.finish_reason is not None:
            return Delta()
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        self.prompt_logprobs += output.prompt_logprobs
        before = self.num_tokens
        position = self._stop_position(output.tokens)
        events: list[Event] = [Content(self._begun)] if self._begun else []
        self._begun = ""
        events += self._read(output.tokens[:position])
        if position is not None and not self._detokenizer.stopped:
            self._is_at_stop_token = True
            output = replace(output, tokens=output.tokens[: position + 1], finish_reason="stop")
            events += self._read(output.tokens[position:])
        consumed = output.tokens[: self.num_tokens - before]
        self._count_drafts(output, len(consumed))
        if self._detokenizer.stopped or (self._parser is not None and self._parser.ended):
            self.finish_reason = "stop"
        elif output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            if text := self._detokenizer.finish():
                events += self._parse(text)
        is_cut = self._parser is not None and self._parser.is_calling
        if self.finish_reason is not None and self._parser is not None:
            events += self._parser.finish()
            is_cut = self._parser.is_calling or (is_cut and self._detokenizer.stopped)
        self._calls_tools |= any(isinstance(event, CallBegin) for event in events)
        if self.finish_reason == "stop" and self._calls_tools and not is_cut:  # a stop string may occur in a call
            self.finish_reason = "tool_calls"
        logprobs = output.logprobs[: len(consumed)]
        self.total_logprob += sum(logprob for logprob, _ in logprobs)
        if output.finish_reason == "stop" and consumed and not self._piece(consumed[-1]):
            del consumed[-1], logprobs[len(consumed) :]
        return Delta(merged(events), consumed, logprobs, self.finish_reason)

    def _count_drafts(self, output: Output, num_consumed: int) -> None:
        """Count the drafts of an output. The tokens after the end of the answer were accepted in vain."""
        accepted = min(output.accepted_drafts, num_consumed)
        self.accepted_drafts += accepted
        self.rejected_drafts += output.accepted_drafts - accepted + output.rejected_drafts

    def _with_stop_token(self, piece: Callable[[int], bytes]) -> Callable[[int], bytes]:
        return lambda token: b"" if self._is_at_stop_token else piece(token)

    def _stop_position(self, tokens: Sequence[int]) -> int | None:
        """The position of the token that ends the answer; None if none does."""
        if not self._stop_tokens:
            return None
        first = max(self._min_tokens - self.num_tokens, 0)
        return next((i for i in range(first, len(tokens)) if tokens[i] in self._stop_tokens), None)

    def _read(self, tokens: Sequence[int]) -> list[Event]:
        if self._parser is None:
            text = self._detokenizer.push(tokens)
            return [Content(text)] if text else []
        events: list[Event] = []
        for token in tokens:  # one by one, to count the reasoning tokens
            new = self._parse(self._detokenizer.push([token]))
            self.num_reasoning_tokens += self._parser.is_reasoning or any(isinstance(e, Reasoning) for e in new)
            events += new
        return events

    def _parse(self, text: str) -> list[Event]:
        if self._parser is None:
            return [Content(text)] if text else []
        return self._parser.push(text) if text else []
