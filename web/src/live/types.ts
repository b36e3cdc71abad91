// The events of `GET /v1/live`, as `api/protocols/live/types.py` describes them.

/** A tenant's part of a step: its name, then tokens of prompts and of answers, drafted ones, and accepted ones of these. */
export type Row = readonly [tenant: string, prompt: number, answer: number, drafted: number, accepted: number];

export interface Step {
  seconds: number;
  rows: readonly Row[];
}

export type PageState = "free" | "cached" | "held" | "shared";

export interface Cell {
  state: PageState;
  tenant: string | null;
}

export interface Pages {
  page_tokens: number;
  total: number;
  free: number;
  cached: number;
  held: number;
  shared: number;
  host: number;
  disk: number;
  tenants: Record<string, { held: number; shared: number }>;
  map: readonly Cell[];
}

export interface QueuedTenant {
  name: string;
  priority: string;
  running: number;
  waiting: number;
  weight: number;
  service: number;
  credit: number | null;
}

export interface Queue {
  running: number;
  waiting: number;
  tenants: readonly QueuedTenant[];
}

export interface Memory {
  kv_tokens: number;
  kv_max: number;
  resident_bytes: number;
  state: string;
}

/** In seconds. */
export interface Percentiles {
  p50: number;
  p95: number;
  p99: number;
}

export interface ModelNow {
  name: string;
  state: string;
  /** Since the previous event, newest last. */
  steps: readonly Step[];
  /** Null while the model has no engine or after an error, as `queue` and `memory`. */
  pages: Pages | null;
  queue: Queue | null;
  memory: Memory | null;
  /** Why the engine reports nothing; null unless it failed to. */
  error: string | null;
  latency: { ttft: Percentiles | null; itl: Percentiles | null };
  tokens_per_s: { prompt: number; answer: number };
}

export interface LiveEvent {
  /** Unix seconds. */
  at: number;
  sees_all: boolean;
  models: readonly ModelNow[];
}
