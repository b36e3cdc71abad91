// Fills that differ in form as well as in colour.

import { colour, onTheme } from "./colours.ts";

export type Hatch = "plain" | "rising" | "falling" | "dots" | "outlined";
export type Box = readonly [x: number, y: number, width: number, height: number];

/** The side of a tile of a pattern, in CSS pixels. */
const TILE = 6;
/** A lower rectangle has no room for a pattern. */
const LEAST = 5;

const tiles = new Map<string, CanvasPattern>();
let hears = false;

/** Fills a rectangle with a colour, and with lines or dots in the colour of the background. */
export function fill(context: CanvasRenderingContext2D, box: Box, paint: string, hatch: Hatch = "plain"): void {
  const [x, y, width, height] = box;
  const isPlain = hatch === "plain" || hatch === "outlined" || height < LEAST;
  context.fillStyle = isPlain ? paint : tile(context, paint, hatch);
  context.fillRect(x, y, width, height);
  if (hatch !== "outlined") return;
  context.strokeStyle = colour("--live-free-edge");
  context.lineWidth = 1;
  context.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
}

/** A pattern that is drawn once, because lines in each rectangle would cost more than all else. */
function tile(context: CanvasRenderingContext2D, paint: string, hatch: Hatch): CanvasPattern | string {
  if (!hears) onTheme(() => tiles.clear());
  hears = true;
  const scale = window.devicePixelRatio || 1;
  const key = `${hatch} ${paint} ${scale}`;
  let pattern = tiles.get(key) ?? null;
  if (!pattern) {
    pattern = context.createPattern(drawTile(paint, hatch, scale), "repeat");
    if (!pattern) return paint;
    pattern.setTransform(new DOMMatrix().scale(1 / scale));
    tiles.set(key, pattern);
  }
  return pattern;
}

function drawTile(paint: string, hatch: Hatch, scale: number): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.round(TILE * scale);
  const context = canvas.getContext("2d");
  if (!context) return canvas;
  context.fillStyle = paint;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.scale(canvas.width / TILE, canvas.height / TILE);
  context.fillStyle = context.strokeStyle = colour("--live-background");
  context.lineWidth = 1.5;
  if (hatch === "dots") {
    for (const [x, y] of [
      [0.5, 0.5],
      [3.5, 3.5],
    ] as const)
      context.fillRect(x, y, 1.75, 1.75);
    return canvas;
  }
  const [from, to] = hatch === "rising" ? [TILE, 0] : [0, TILE];
  for (const shift of [-TILE, 0, TILE]) {
    context.moveTo(from + (to - from) * -1, shift - TILE);
    context.lineTo(to + (to - from), shift + 2 * TILE);
  }
  context.stroke();
  return canvas;
}
