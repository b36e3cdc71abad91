import { useCallback } from "preact/hooks";

import { colour } from "../colours.ts";
import { Drawing, type Draw } from "../parts/drawing.tsx";
import { count, plural, seconds } from "../format.ts";
import { fill, type Box, type Hatch } from "../patterns.ts";
import { Nothing, Region } from "../parts/region.tsx";
import {
  ceiling,
  countsOf,
  KIND_LABELS,
  KINDS,
  partsOf,
  sumOf,
  tenantsOf,
  totalOf,
  type Kind,
  type Part,
} from "../steps.ts";
import type { ModelView, Store } from "../store.ts";
import { Swatch } from "../parts/swatch.tsx";
import type { Tenants } from "../tenants.ts";
import type { Step } from "../types.ts";
import type { ColourBy } from "../choices.ts";

const HEIGHT = 190;
const AXIS_WIDTH = 38;
const BAR = 8;
const GAP = 2;
/** Even one token beside a long prompt is this tall. */
const LEAST = 3;

const HEADERS: Record<Kind, string> = {
  prompt: "Prompt",
  answer: "Answer",
  accepted: "Accepted",
  rejected: "Rejected",
};
const HATCHES: Record<Kind, Hatch> = { prompt: "plain", answer: "falling", accepted: "dots", rejected: "rising" };

interface Props {
  store: Store;
  view: ModelView;
  by: ColourBy;
}

/** What the last steps held. */
export function StepsRegion({ store, view, by }: Props) {
  const draw = useCallback<Draw>(
    (context, width, height) => drawSteps(context, width, height, view.steps, by, store.tenants),
    [store, view, by],
  );
  const latest = view.steps.at(-1);
  return (
    <Region title="Steps" note="Tokens of each step, newest at the right. Every part is drawn at least 3 pixels tall.">
      <Drawing label={describe(view.steps)} store={store} height={() => HEIGHT} draw={draw} />
      {by === "kind" && (
        <p class="live-legend">
          {KINDS.map((kind) => (
            <span key={kind}>
              <Swatch colour={`--live-${kind}`} hatch={HATCHES[kind]} />
              {KIND_LABELS[kind]}
            </span>
          ))}
        </p>
      )}
      {latest ? (
        <LatestStep step={latest} names={tenantsOf(view.steps)} tenants={store.tenants} />
      ) : (
        <Nothing>No step was computed since the page was opened.</Nothing>
      )}
    </Region>
  );
}

/** `names`: the tenants of all bars. They have a row each, so that rows do not come and go with each step. */
function LatestStep({ step, names, tenants }: { step: Step; names: readonly string[]; tenants: Tenants }) {
  const sum = sumOf(step);
  const rows = new Map(step.rows.map((row) => [row[0], row]));
  return (
    <div class="live-scroll live-tall" tabIndex={0} role="group" aria-label="Latest step">
      <table>
        <caption>
          Latest step: {plural(totalOf(sum), "token")} in {seconds(step.seconds)}
        </caption>
        <thead>
          <tr>
            <th scope="col">Tenant</th>
            {KINDS.map((kind) => (
              <th scope="col" key={kind}>
                {HEADERS[kind]}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {names.map((name) => {
            const counts = countsOf(rows.get(name) ?? [name, 0, 0, 0, 0]);
            const { colour: variable, letter } = tenants.of(name);
            return (
              <tr key={name}>
                <th scope="row">
                  <Swatch colour={variable} letter={letter} />
                  {name}
                </th>
                {KINDS.map((kind) => (
                  <td key={kind}>{count(counts[kind])}</td>
                ))}
              </tr>
            );
          })}
        </tbody>
        {names.length > 1 && (
          <tfoot>
            <tr>
              <th scope="row">All</th>
              {KINDS.map((kind) => (
                <td key={kind}>{count(sum[kind])}</td>
              ))}
            </tr>
          </tfoot>
        )}
      </table>
    </div>
  );
}

function describe(steps: readonly Step[]): string {
  const latest = steps.at(-1);
  if (!latest) return "Bars of the last steps. There are none yet.";
  const sum = sumOf(latest);
  const parts = KINDS.map((kind) => `${KIND_LABELS[kind]} ${sum[kind]}`).join(", ");
  return `Bars of the last ${plural(steps.length, "step")}. Tokens of the latest one: ${parts}.`;
}

function drawSteps(
  context: CanvasRenderingContext2D,
  width: number,
  height: number,
  steps: readonly Step[],
  by: ColourBy,
  tenants: Tenants,
): void {
  const shown = steps.slice(-Math.floor((width - AXIS_WIDTH) / (BAR + GAP)));
  const bars = shown.map((step) => partsOf(step, by));
  const top = ceiling(Math.max(0, ...bars.map((parts) => parts.reduce((sum, part) => sum + part.tokens, 0))));
  const room = height - 16;
  drawAxis(context, width, room, top);
  bars.forEach((parts, index) => {
    const x = width - (bars.length - index) * (BAR + GAP) + GAP;
    let y = height - 8;
    for (const part of parts) {
      const tall = Math.max(LEAST, (part.tokens / top) * room - 1);
      y -= tall;
      drawPart(context, [x, Math.max(0, y), BAR, tall], part, tenants);
      y -= 1;
    }
  });
}

function drawAxis(context: CanvasRenderingContext2D, width: number, room: number, top: number): void {
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.strokeStyle = colour("--live-grid");
  context.fillStyle = colour("--live-faint");
  context.lineWidth = 1;
  for (const part of [0, 0.5, 1]) {
    const y = Math.round(8 + room * (1 - part)) + 0.5;
    context.beginPath();
    context.moveTo(AXIS_WIDTH, y);
    context.lineTo(width, y);
    context.stroke();
    context.fillText(count(top * part), AXIS_WIDTH - 6, y);
  }
}

function drawPart(context: CanvasRenderingContext2D, box: Box, part: Part, tenants: Tenants): void {
  if (part.kind) return fill(context, box, colour(`--live-${part.kind}`), HATCHES[part.kind]);
  const { colour: variable, letter } = tenants.of(part.tenant ?? "");
  fill(context, box, colour(variable));
  const [x, y, width, height] = box;
  if (height < 10) return;
  context.font = "bold 8px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillStyle = colour("--live-on-colour");
  context.fillText(letter, x + width / 2, y + height / 2 + 0.5);
}
