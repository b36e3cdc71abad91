import { count, digits, plural, short } from "../format.ts";
import { NoReport, Nothing, Region } from "../parts/region.tsx";
import type { ModelView, Store } from "../store.ts";
import { Swatch } from "../parts/swatch.tsx";

interface Props {
  store: Store;
  view: ModelView;
}

/** Who runs, who waits, and who goes first. */
export function QueueRegion({ store, view }: Props) {
  const queue = view.now.queue;
  const tenants = queue?.tenants ?? [];
  const most = Math.max(1, ...tenants.map((each) => each.running));
  const mostWaiting = Math.max(1, ...tenants.map((each) => each.waiting));
  const largest = Math.max(1, ...tenants.map((each) => Math.abs(each.credit ?? 0)));
  return (
    <Region title="Queue" note={queue && `${count(queue.running)} running, ${count(queue.waiting)} waiting`}>
      {!queue ? (
        <NoReport model={view.now} />
      ) : tenants.length === 0 ? (
        <Nothing>Nothing runs or waits.</Nothing>
      ) : (
        <div class="live-scroll live-tall" tabIndex={0} role="group" aria-label="Fair shares">
          <table>
            <caption>Fair shares: service and credit in prompt tokens</caption>
            <thead>
              <tr>
                <th scope="col">Tenant</th>
                <th scope="col">Running</th>
                <th scope="col">Waiting</th>
                <th scope="col">Credit</th>
                <th scope="col">Service</th>
                <th scope="col">Weight</th>
              </tr>
            </thead>
            <tbody>
              {tenants.map((each) => {
                const { colour, letter } = store.tenants.of(each.name);
                return (
                  <tr key={`${each.priority} ${each.name}`}>
                    <th scope="row">
                      <Swatch colour={colour} letter={letter} />
                      {each.name}
                      {each.priority !== "default" && <span class="live-faint"> ({each.priority})</span>}
                    </th>
                    <td>
                      {count(each.running)}
                      <Bar part={each.running / most} colour="--live-held" />
                    </td>
                    <td>
                      {count(each.waiting)}
                      <Bar part={each.waiting / mostWaiting} colour="--live-rejected" />
                    </td>
                    <td>
                      {each.credit === null ? <span title="Nobody of this class waits.">–</span> : signed(each.credit)}
                      {each.credit !== null && (
                        <Bar
                          part={Math.abs(each.credit) / largest}
                          colour={each.credit < 0 ? "--live-debt" : "--live-accepted"}
                        />
                      )}
                    </td>
                    <td title={plural(Math.round(each.service), "prompt token")}>{short(each.service)}</td>
                    <td>{digits(each.weight)}</td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
      )}
    </Region>
  );
}

function signed(value: number): string {
  return value < 0 ? `−${short(-value)}` : `+${short(value)}`;
}

/** A small bar below a number, which says the same. */
function Bar({ part, colour }: { part: number; colour: string }) {
  return (
    <span class="live-bar" aria-hidden="true">
      <span style={{ width: `${Math.round(100 * part)}%`, backgroundColor: `var(${colour})` }} />
    </span>
  );
}
