import { seconds } from "../format.ts";
import type { Measure } from "../history.ts";
import { Plot, type Line } from "../parts/plot.tsx";
import { Region } from "../parts/region.tsx";
import type { ModelView } from "../store.ts";
import type { Percentiles } from "../types.ts";

const PERCENTILES = ["p50", "p95", "p99"] as const;
const TTFT = lines("ttft50", "ttft95", "ttft99");
const ITL = lines("itl50", "itl95", "itl99");

/** How long users wait. */
export function LatencyRegion({ view, seesAll }: { view: ModelView; seesAll: boolean }) {
  const { ttft, itl } = view.now.latency;
  return (
    <Region title="Latency" note={`Of ${seesAll ? "all" : "your"} requests of the last minute.`}>
      <div class="live-columns">
        <Plot
          title="Time to first token"
          label={describe("Time to first token", ttft)}
          history={view.history}
          at={view.at}
          lines={TTFT}
          format={seconds}
          least={0.1}
        />
        <Plot
          title="Time between tokens"
          label={describe("Time between tokens", itl)}
          history={view.history}
          at={view.at}
          lines={ITL}
          format={seconds}
          least={0.01}
        />
      </div>
      <table>
        <caption>Percentiles of the last minute</caption>
        <thead>
          <tr>
            <td />
            {PERCENTILES.map((each) => (
              <th scope="col" key={each}>
                {each}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          <Percents name="Time to first token (TTFT)" values={ttft} />
          <Percents name="Time between tokens (ITL)" values={itl} />
        </tbody>
      </table>
    </Region>
  );
}

function Percents({ name, values }: { name: string; values: Percentiles | null }) {
  return (
    <tr>
      <th scope="row">{name}</th>
      {PERCENTILES.map((each) => (
        <td key={each}>{seconds(values?.[each])}</td>
      ))}
    </tr>
  );
}

function lines(p50: Measure, p95: Measure, p99: Measure): readonly Line[] {
  return [
    { measure: p50, label: "p50", colour: "--live-p50" },
    { measure: p95, label: "p95", colour: "--live-p95", dash: [7, 4] },
    { measure: p99, label: "p99", colour: "--live-p99", dash: [2, 3] },
  ];
}

function describe(name: string, values: Percentiles | null): string {
  const now = values ? PERCENTILES.map((each) => `${each} ${seconds(values[each])}`).join(", ") : "no requests";
  return `${name} over the last 5 minutes. Now: ${now}.`;
}
