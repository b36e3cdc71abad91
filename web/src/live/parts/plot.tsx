import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

import { colour, onTheme } from "../colours.ts";
import { HISTORY_SECONDS, type History, type Measure } from "../history.ts";

export interface Line {
  measure: Measure;
  label: string;
  /** The name of a CSS variable. */
  colour: string;
  dash?: number[];
  /** Whether the area below the line is filled. */
  filled?: boolean;
}

interface Props {
  title: string;
  /** The numbers of the plot, for those who do not see it. */
  label: string;
  history: History;
  /** Unix seconds of the newest value. A change draws the plot again. */
  at: number;
  lines: readonly Line[];
  /** Writes a value of the vertical axis. */
  format: (value: number) => string;
  /** The least value at the top of the axis. */
  least: number;
  /** Distances that the labels of the axis may have. Decimal ones by default. */
  distances?: number[];
}

const HEIGHT = 150;
const FONT = "11px system-ui, sans-serif";
const MINUTE = 60;

/** Lines over the last minutes. */
export function Plot({ title, label, history, at, lines, format, least, distances }: Props) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);

  useEffect(() => {
    const element = place.current;
    if (!element) return;
    const made = new uPlot(options(element.clientWidth, { lines, format, least, distances }), [[]], element);
    plot.current = made;
    const resized = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: HEIGHT }));
    resized.observe(element);
    const stop = onTheme(() => made.redraw(false));
    return () => {
      resized.disconnect();
      stop();
      made.destroy();
      plot.current = null;
    };
  }, [lines, format, least, distances]);

  useEffect(() => {
    const columns = lines.map((line) => [...history.column(line.measure)]);
    plot.current?.setData([history.times.map((time) => time - at), ...columns]);
  }, [history, at, lines]);

  return (
    <figure class="live-plot">
      <figcaption>
        <span class="live-plot-title">{title}</span>
        {lines.length > 1 && <Legend lines={lines} />}
      </figcaption>
      <div ref={place} role="img" aria-label={label} />
    </figure>
  );
}

function Legend({ lines }: { lines: readonly Line[] }) {
  return (
    <span class="live-legend">
      {lines.map((line) => (
        <span key={line.measure}>
          <svg width="22" height="8" aria-hidden="true">
            <line
              x1="0"
              y1="4"
              x2="22"
              y2="4"
              style={{ stroke: `var(${line.colour})` }}
              stroke-width="2"
              stroke-dasharray={line.dash?.join(" ")}
            />
          </svg>
          {line.label}
        </span>
      ))}
    </span>
  );
}

type Look = Pick<Props, "lines" | "format" | "least"> & { distances: number[] | undefined };

function options(width: number, { lines, format, least, distances }: Look): uPlot.Options {
  const axis: uPlot.Axis = {
    font: FONT,
    stroke: () => colour("--live-faint"),
    grid: { stroke: () => colour("--live-grid"), width: 1 },
    ticks: { show: false },
  };
  return {
    width,
    height: HEIGHT,
    cursor: { show: false },
    legend: { show: false },
    padding: [8, 16, 0, 0],
    scales: {
      x: { time: false, range: () => [-HISTORY_SECONDS, 0] },
      y: { range: (_, __, highest) => [0, Math.max(least, (highest ?? 0) * 1.1)] },
    },
    axes: [
      { ...axis, size: 22, splits: () => minutes(), values: (_, splits) => splits.map(minuteLabel) },
      {
        ...axis,
        size: 62,
        space: 32,
        values: (_, splits) => splits.map(format),
        ...(distances ? { incrs: distances } : {}),
      },
    ],
    series: [
      {},
      ...lines.map((line): uPlot.Series => ({
        stroke: () => colour(line.colour),
        ...(line.filled ? { fill: () => colour(`${line.colour}-area`) } : {}),
        width: 2,
        points: { show: false },
        ...(line.dash ? { dash: line.dash } : {}),
      })),
    ],
  };
}

function minutes(): number[] {
  return Array.from({ length: HISTORY_SECONDS / MINUTE + 1 }, (_, index) => index * MINUTE - HISTORY_SECONDS);
}

function minuteLabel(second: number): string {
  if (second === -HISTORY_SECONDS) return ""; // it would touch the labels of the other axis
  return second === 0 ? "now" : `−${-second / MINUTE} min`;
}
