// What the plots show: one value a second of each measurement, for five minutes.

import type { ModelNow } from "./types.ts";

export const HISTORY_SECONDS = 300;
/** A longer pause between two events becomes a gap in the lines. */
const GAP_SECONDS = 5;

export const MEASURES = [
  "ttft50",
  "ttft95",
  "ttft99",
  "itl50",
  "itl95",
  "itl99",
  "promptRate",
  "answerRate",
  "kvTokens",
  "kvMax",
  "bytes",
] as const;
export type Measure = (typeof MEASURES)[number];
type Values = Record<Measure, number | null>;

export class History {
  /** Unix seconds, ascending. */
  readonly times: number[] = [];
  readonly #columns = Object.fromEntries(MEASURES.map((each) => [each, []])) as unknown as Record<
    Measure,
    (number | null)[]
  >;

  /** The values of a measure, in the order of `times`. Null where it was not known. */
  column(measure: Measure): readonly (number | null)[] {
    return this.#columns[measure];
  }

  /** Records what a model reports. Of several reports in one second the last one stays. */
  add(at: number, model: ModelNow): void {
    const second = Math.floor(at);
    const last = this.times.at(-1);
    if (last !== undefined && second < last)
      this.#clear(); // the clock was set back
    else if (last === second) this.#drop("newest");
    else if (last !== undefined && second - last > GAP_SECONDS) this.#push(last + 1, null);
    this.#push(second, measure(model));
    while ((this.times[0] ?? second) < second - HISTORY_SECONDS) this.#drop("oldest");
  }

  /** The mean and the highest of the known values of the last seconds; null without one. */
  summary(measure: Measure, seconds: number): { mean: number | null; highest: number | null } {
    const first = (this.times.at(-1) ?? 0) - seconds;
    const known = this.#columns[measure].filter(
      (value, index): value is number => value !== null && (this.times[index] ?? 0) > first,
    );
    if (!known.length) return { mean: null, highest: null };
    return { mean: known.reduce((sum, value) => sum + value, 0) / known.length, highest: Math.max(...known) };
  }

  #push(second: number, values: Values | null): void {
    this.times.push(second);
    for (const each of MEASURES) this.#columns[each].push(values?.[each] ?? null);
  }

  #drop(which: "oldest" | "newest"): void {
    for (const column of [this.times, ...Object.values(this.#columns)])
      which === "oldest" ? column.shift() : column.pop();
  }

  #clear(): void {
    for (const column of [this.times, ...Object.values(this.#columns)]) column.length = 0;
  }
}

function measure({ latency, tokens_per_s, memory }: ModelNow): Values {
  const { ttft, itl } = latency;
  return {
    ttft50: ttft?.p50 ?? null,
    ttft95: ttft?.p95 ?? null,
    ttft99: ttft?.p99 ?? null,
    itl50: itl?.p50 ?? null,
    itl95: itl?.p95 ?? null,
    itl99: itl?.p99 ?? null,
    promptRate: tokens_per_s.prompt ?? null,
    answerRate: tokens_per_s.answer ?? null,
    kvTokens: memory?.kv_tokens ?? null,
    kvMax: memory?.kv_max ?? null,
    bytes: memory?.resident_bytes ?? null,
  };
}
