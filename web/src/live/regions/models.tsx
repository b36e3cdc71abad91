import { Nothing, Region } from "../parts/region.tsx";
import { count, percent } from "../format.ts";
import type { ModelNow } from "../types.ts";

const STATES: Record<string, { text: string; symbol: string }> = {
  ready: { text: "running", symbol: "●" },
  loading: { text: "starting", symbol: "◐" },
  stopping: { text: "stopping", symbol: "◑" },
  unloaded: { text: "not loaded", symbol: "○" },
  failed: { text: "failed", symbol: "✕" },
};

interface Props {
  models: readonly ModelNow[];
  chosen: string | undefined;
  choose: (name: string) => void;
}

/** All models with their states. The user chooses the one that the other regions show. */
export function ModelsRegion({ models, chosen, choose }: Props) {
  return (
    <Region title="Models" note={models.length > 1 && "The other parts show the chosen one."}>
      {models.length === 0 ? (
        <Nothing>The server has no models.</Nothing>
      ) : (
        <div class="live-scroll" tabIndex={0} role="group" aria-label="All models">
          <table>
            <thead>
              <tr>
                <th scope="col">Model</th>
                <th scope="col" class="live-word">
                  State
                </th>
                <th scope="col">Running</th>
                <th scope="col">Waiting</th>
                <th scope="col">KV in use</th>
              </tr>
            </thead>
            <tbody>
              {models.map(({ name, state, queue, pages }) => (
                <tr key={name}>
                  <th scope="row">
                    <label>
                      <input type="radio" name="live-model" checked={name === chosen} onChange={() => choose(name)} />
                      {name}
                    </label>
                  </th>
                  <td class={`live-word live-state-${state}`}>
                    <span aria-hidden="true">{STATES[state]?.symbol ?? "?"} </span>
                    {STATES[state]?.text ?? state}
                  </td>
                  <td>{count(queue?.running)}</td>
                  <td>{count(queue?.waiting)}</td>
                  <td>{pages ? percent(pages.held + pages.shared, pages.total) : "–"}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </Region>
  );
}
