// Reports of a model, for tests.
import type { LiveEvent, ModelNow } from "./types.ts";

export function modelNow(changes: Partial<ModelNow> = {}): ModelNow {
  return {
    name: "small",
    state: "ready",
    steps: [],
    pages: null,
    queue: null,
    memory: null,
    error: null,
    latency: { ttft: null, itl: null },
    tokens_per_s: { prompt: 0, answer: 0 },
    ...changes,
  };
}

export function liveEvent(at: number, ...models: ModelNow[]): LiveEvent {
  return { at, sees_all: true, models };
}
