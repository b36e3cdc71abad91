import { rate, short } from "../format.ts";
import { HISTORY_SECONDS, type Measure } from "../history.ts";
import { Plot, type Line } from "../parts/plot.tsx";
import { Region } from "../parts/region.tsx";
import type { ModelView } from "../store.ts";

const PROMPT: readonly Line[] = [{ measure: "promptRate", label: "Prompt", colour: "--live-prompt", filled: true }];
const ANSWER: readonly Line[] = [{ measure: "answerRate", label: "Answer", colour: "--live-answer", filled: true }];
const MINUTE = 60;

/** How much is computed. */
export function ThroughputRegion({ view, seesAll }: { view: ModelView; seesAll: boolean }) {
  const { prompt, answer } = view.now.tokens_per_s;
  const shared = { history: view.history, at: view.at, format: short, least: 10 };
  return (
    <Region title="Throughput" note={`Tokens per second of ${seesAll ? "all" : "your"} requests.`}>
      <div class="live-columns">
        <Plot title="Tokens of prompts per second" label={describe("prompts", prompt)} lines={PROMPT} {...shared} />
        <Plot title="Tokens of answers per second" label={describe("answers", answer)} lines={ANSWER} {...shared} />
      </div>
      <table>
        <caption>Tokens per second</caption>
        <thead>
          <tr>
            <td />
            <th scope="col">Now</th>
            <th scope="col">Mean of a minute</th>
            <th scope="col">Highest in 5 minutes</th>
          </tr>
        </thead>
        <tbody>
          <Rates name="Prompts" now={prompt} view={view} measure="promptRate" />
          <Rates name="Answers" now={answer} view={view} measure="answerRate" />
        </tbody>
      </table>
    </Region>
  );
}

function Rates({ name, now, view, measure }: { name: string; now: number; view: ModelView; measure: Measure }) {
  return (
    <tr>
      <th scope="row">{name}</th>
      <td>{rate(now)}</td>
      <td>{rate(view.history.summary(measure, MINUTE).mean)}</td>
      <td>{rate(view.history.summary(measure, HISTORY_SECONDS).highest)}</td>
    </tr>
  );
}

function describe(name: string, now: number): string {
  return `Tokens of ${name} per second over the last 5 minutes. Now: ${rate(now)}.`;
}
