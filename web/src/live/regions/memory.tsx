import { bytes, count, percent, short } from "../format.ts";
import { Plot, type Line } from "../parts/plot.tsx";
import { NoReport, Region } from "../parts/region.tsx";
import type { ModelView } from "../store.ts";
import type { Memory } from "../types.ts";

const TOKENS: readonly Line[] = [
  { measure: "kvTokens", label: "Now", colour: "--live-held", filled: true },
  { measure: "kvMax", label: "At most", colour: "--live-faint", dash: [6, 4] },
];
const BYTES: readonly Line[] = [{ measure: "bytes", label: "Resident", colour: "--live-cached", filled: true }];

/** Bytes: from 64 MiB to 1 TiB. */
const POWERS = Array.from({ length: 15 }, (_, index) => 2 ** (26 + index));

/** How much memory the model has. */
export function MemoryRegion({ view }: { view: ModelView }) {
  const memory = view.now.memory;
  const shared = { history: view.history, at: view.at };
  return (
    <Region title="Memory" note={memory && `KV memory is ${memory.state}.`}>
      <div class="live-columns">
        <Plot
          title="Room for tokens in KV memory"
          label={`Tokens in KV memory over the last 5 minutes. ${memory ? `Now: ${count(memory.kv_tokens)} of at most ${count(memory.kv_max)}.` : ""}`}
          lines={TOKENS}
          format={short}
          least={1000}
          {...shared}
        />
        <Plot
          title="Memory of the engine"
          label={`Memory of the engine over the last 5 minutes. ${memory ? `Now: ${bytes(memory.resident_bytes)}.` : ""}`}
          lines={BYTES}
          format={bytes}
          least={POWERS[0] ?? 0}
          distances={POWERS}
          {...shared}
        />
      </div>
      {memory ? <Numbers memory={memory} /> : <NoReport model={view.now} />}
    </Region>
  );
}

function Numbers({ memory }: { memory: Memory }) {
  return (
    <table>
      <caption>Memory now</caption>
      <tbody>
        <tr>
          <th scope="row">Room for tokens in KV memory</th>
          <td>{count(memory.kv_tokens)}</td>
        </tr>
        <tr>
          <th scope="row">At most</th>
          <td>
            {count(memory.kv_max)} <span class="live-faint">({percent(memory.kv_tokens, memory.kv_max)} now)</span>
          </td>
        </tr>
        <tr>
          <th scope="row">Resident memory of the engine</th>
          <td>{bytes(memory.resident_bytes)}</td>
        </tr>
      </tbody>
    </table>
  );
}
