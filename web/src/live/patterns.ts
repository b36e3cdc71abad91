// Fills that differ in form as well as in colour.

import { colour } from "./colours.ts";

export type Hatch = "plain" | "rising" | "falling" | "dots" | "outlined";

const TILE = 8;
/** A lower rectangle has no room for a pattern. */
const LEAST = 5;

/** Fills a rectangle with a colour, and with lines or dots in the colour of the background. */
export function fill(
  context: CanvasRenderingContext2D,
  [x, y, width, height]: readonly [x: number, y: number, width: number, height: number],
  paint: string,
  hatch: Hatch = "plain",
): void {
  context.fillStyle = paint;
  context.fillRect(x, y, width, height);
  if (hatch === "plain" || height < LEAST) return;
  if (hatch === "outlined") {
    context.strokeStyle = colour("--live-free-edge");
    context.lineWidth = 1;
    context.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
    return;
  }
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.strokeStyle = context.fillStyle = colour("--live-background");
  context.lineWidth = 1.5;
  context.beginPath();
  if (hatch === "dots") {
    for (let row = y + height - TILE / 4; row > y - 2; row -= TILE / 2) {
      for (let column = x + TILE / 4; column < x + width + 2; column += TILE / 2)
        context.rect(column - 0.75, row - 0.75, 1.5, 1.5);
    }
    context.fill();
  } else {
    const [from, to] = hatch === "rising" ? [width, 0] : [0, width];
    for (let row = y - width; row < y + height + width; row += TILE * 0.7) {
      context.moveTo(x + from, row);
      context.lineTo(x + to, row + width);
    }
    context.stroke();
  }
  context.restore();
}
