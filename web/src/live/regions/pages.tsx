import { useCallback } from "preact/hooks";

import type { ColourBy } from "../choices.ts";
import { colour } from "../colours.ts";
import { Drawing, type Draw } from "../parts/drawing.tsx";
import { count, percent, plural } from "../format.ts";
import { grid } from "../map.ts";
import { fill, type Hatch } from "../patterns.ts";
import { NoReport, Region } from "../parts/region.tsx";
import type { ModelView, Store } from "../store.ts";
import { Swatch } from "../parts/swatch.tsx";
import type { Tenants } from "../tenants.ts";
import type { Cell, Pages, PageState } from "../types.ts";

const STATES: readonly PageState[] = ["held", "shared", "cached", "free"];
const LABELS: Record<PageState, string> = { held: "Held", shared: "Shared", cached: "Cached", free: "Free" };
const HATCHES: Record<PageState, Hatch> = { held: "plain", shared: "falling", cached: "dots", free: "outlined" };

interface Props {
  store: Store;
  view: ModelView;
  by: ColourBy;
}

/** The pages of the KV cache. */
export function PagesRegion({ store, view, by }: Props) {
  const draw = useCallback<Draw>(
    (context, width) => drawMap(context, width, view.now.pages?.map ?? [], by, store.tenants),
    [store, view, by],
  );
  const { pages } = view.now;
  if (!pages) {
    return (
      <Region title="KV cache">
        <NoReport model={view.now} />
      </Region>
    );
  }
  return (
    <Region title="KV cache" note={<Note pages={pages} />}>
      <Drawing label={describe(pages)} store={store} height={(width) => tall(pages.map.length, width)} draw={draw} />
      <p class="live-legend">
        {STATES.map((state) => (
          <span key={state}>
            <Swatch colour={plainColour(state, by)} hatch={HATCHES[state]} />
            {LABELS[state]}
          </span>
        ))}
      </p>
      <div class="live-columns">
        <StateTable pages={pages} />
        <TenantTable pages={pages} tenants={store.tenants} />
      </div>
    </Region>
  );
}

/** The colour of a state, where no tenant gives its own. */
function plainColour(state: PageState, by: ColourBy): string {
  return by === "kind" || state === "free" ? `--live-${state}` : "--live-faint";
}

function Note({ pages }: { pages: Pages }) {
  const share = pages.map.length ? pages.total / pages.map.length : 0;
  return (
    <>
      {plural(pages.total, "page")} of {pages.page_tokens} tokens.
      {share > 1 && ` A cell stands for about ${plural(Math.round(share), "page")}.`}
    </>
  );
}

function StateTable({ pages }: { pages: Pages }) {
  return (
    <table>
      <caption>Pages by state</caption>
      <tbody>
        {STATES.map((state) => (
          <tr key={state}>
            <th scope="row">{LABELS[state]}</th>
            <td>{count(pages[state])}</td>
            <td class="live-faint">{percent(pages[state], pages.total)}</td>
          </tr>
        ))}
        <tr>
          <th scope="row">In host memory</th>
          <td>{count(pages.host)}</td>
          <td />
        </tr>
        <tr>
          <th scope="row">On disk</th>
          <td>{count(pages.disk)}</td>
          <td />
        </tr>
      </tbody>
    </table>
  );
}

function TenantTable({ pages, tenants }: { pages: Pages; tenants: Tenants }) {
  const rows = Object.entries(pages.tenants).sort(([, a], [, b]) => b.held + b.shared - a.held - a.shared);
  if (!rows.length) return null;
  return (
    <div class="live-scroll live-short" tabIndex={0} role="group" aria-label="Pages by tenant">
      <table>
        <caption>Pages by tenant</caption>
        <thead>
          <tr>
            <th scope="col">Tenant</th>
            <th scope="col">Held</th>
            <th scope="col">Shared</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(([name, { held, shared }]) => {
            const { colour: variable, letter } = tenants.of(name);
            return (
              <tr key={name}>
                <th scope="row">
                  <Swatch colour={variable} letter={letter} />
                  {name}
                </th>
                <td>{count(held)}</td>
                <td>{count(shared)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

function describe(pages: Pages): string {
  const parts = STATES.map((state) => `${pages[state]} ${state}`).join(", ");
  return `Map of ${plural(pages.total, "KV page")}: ${parts}.`;
}

function tall(cells: number, width: number): number {
  const { rows, size } = grid(cells, width);
  return Math.ceil(rows * size);
}

function drawMap(
  context: CanvasRenderingContext2D,
  width: number,
  cells: readonly Cell[],
  by: ColourBy,
  tenants: Tenants,
): void {
  const { columns, size } = grid(cells.length, width);
  context.font = `bold ${Math.max(8, Math.round(size * 0.5))}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  cells.forEach(({ state, tenant }, index) => {
    const x = (index % columns) * size;
    const y = Math.floor(index / columns) * size;
    const mark = by === "tenant" && tenant !== null && state !== "free" ? tenants.of(tenant) : null;
    fill(context, [x, y, size - 2, size - 2], colour(mark?.colour ?? plainColour(state, by)), HATCHES[state]);
    if (!mark) return;
    context.fillStyle = colour(mark.colour);
    context.fillRect(x + size / 2 - 1 - size * 0.28, y + size / 2 - 1 - size * 0.28, size * 0.56, size * 0.56);
    context.fillStyle = colour("--live-on-colour");
    context.fillText(mark.letter, x + size / 2 - 1, y + size / 2 - 0.5);
  });
}
