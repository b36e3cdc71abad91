// An answer of the model: thoughts, text, calls of tools, how it ended, and its numbers.
import { useEffect, useState } from "preact/hooks";

import { Alert } from "../ui/alert.tsx";
import { CopyButton } from "../ui/copybutton.tsx";
import { Icon } from "../ui/icon.tsx";
import { prettyJson, statsLine } from "./format.ts";
import { Rendered } from "./rendered.tsx";
import type { Answer, ToolCall } from "./types.ts";

interface AnswerProps {
  answer: Answer;
  isLast: boolean;
  /** The place in the queue; null when unknown. */
  position: number | null;
  onRegenerate: () => void;
  onResults: (results: string[]) => void;
}

const NOTES: Partial<Record<Answer["ending"], string>> = {
  length: "The answer reached its largest length: “Max tokens” or the context of the model.",
  stopped: "You stopped this answer.",
  lost: "This answer did not end here: its page was closed, or another tab still writes it.",
};

export function AnswerView({ answer, isLast, position, onRegenerate, onResults }: AnswerProps) {
  const { text, thoughts, calls, ending, error, stats } = answer;
  const isRunning = ending === "running";
  const isWaiting = isRunning && text === "" && thoughts === "" && calls.length === 0;
  const note = NOTES[ending];
  return (
    <article class="answer" aria-label="Answer" aria-busy={isRunning}>
      {isWaiting ? <Waiting position={position} /> : null}
      {thoughts === "" ? null : <Thoughts text={thoughts} isThinking={isRunning && text === "" && calls.length === 0} />}
      {text === "" ? null : <Rendered text={text} />}
      {calls.map((call, index) => (
        <CallView key={index} call={call} />
      ))}
      {isLast && !isRunning && calls.length > 0 && calls.some(({ result }) => result === null) ? (
        <Results calls={calls} onResults={onResults} />
      ) : null}
      {note === undefined ? null : <p class="note">{note}</p>}
      {error === "" ? null : <Alert isOld={!isLast}>{error}</Alert>}
      {isRunning ? null : (
        <div class="message-tools">
          {text === "" ? null : <CopyButton text={text} />}
          {isLast ? (
            <button type="button" class="button quiet small" onClick={onRegenerate}>
              <Icon name="again" />
              Regenerate
            </button>
          ) : null}
          {stats === null ? null : <p class="stats">{statsLine(answer.model, stats)}</p>}
        </div>
      )}
    </article>
  );
}

function Waiting({ position }: { position: number | null }) {
  return (
    <p class="waiting">
      <span class="pulse" />
      {position === null ? "Waiting for the first token" : `Waiting in the queue at position ${position}`}
    </p>
  );
}

function Thoughts({ text, isThinking }: { text: string; isThinking: boolean }) {
  return (
    <details class="thoughts">
      <summary>
        Thoughts
        {isThinking ? <span class="pulse" /> : null}
      </summary>
      <Rendered text={text} />
    </details>
  );
}

function CallView({ call }: { call: ToolCall }) {
  return (
    <details class="call" open>
      <summary>
        Tool call: <code>{call.name}</code>
      </summary>
      <pre tabIndex={0}>{prettyJson(call.arguments)}</pre>
      {call.result === null ? null : (
        <>
          <p class="call-label">Result</p>
          <pre tabIndex={0}>{prettyJson(call.result)}</pre>
        </>
      )}
    </details>
  );
}

/** Asks for what the tools returned: the page runs none. */
function Results({ calls, onResults }: { calls: ToolCall[]; onResults: (results: string[]) => void }) {
  const [results, setResults] = useState<string[]>([]);
  useEffect(() => setResults([]), [calls]);
  return (
    <form
      class="results"
      onSubmit={(event) => {
        event.preventDefault();
        onResults(calls.map((_, index) => results[index] ?? ""));
      }}
    >
      {calls.map(({ name }, index) => (
        <label key={index} class="field">
          <span>Result of {name}</span>
          <textarea
            rows={2}
            class="mono"
            spellcheck={false}
            value={results[index] ?? ""}
            onInput={({ currentTarget: field }) =>
              setResults(calls.map((_, each) => (each === index ? field.value : (results[each] ?? ""))))
            }
          />
        </label>
      ))}
      <div class="actions">
        <button type="submit" class="button primary">
          Send results
        </button>
      </div>
    </form>
  );
}
