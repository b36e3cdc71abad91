// What the live view knows: the latest event, and a bounded history of each model.

import { History, HISTORY_SECONDS } from "./history.ts";
import { append, tenantsOf } from "./steps.ts";
import { Tenants } from "./tenants.ts";
import type { LiveEvent, ModelNow, Step } from "./types.ts";

/** Events come more often than this, in seconds, unless nothing changes. */
const SILENCE = 0.9;

/** A model's latest report and its history. */
export interface ModelView {
  now: ModelNow;
  steps: Step[];
  history: History;
  /** Unix seconds of its latest event. */
  at: number;
}

export class Store {
  readonly tenants = new Tenants();
  readonly #models = new Map<string, ModelView>();
  readonly #listeners = new Set<() => void>();
  #arrived = 0;
  latest: LiveEvent | null = null;

  /** Calls a function after each event until the returned function is called. */
  listen(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  view(name: string): ModelView | undefined {
    return this.#models.get(name);
  }

  /** `clock`: seconds on this machine's clock, as for `tick`. */
  add(event: LiveEvent, clock: number): void {
    this.latest = event;
    this.#arrived = clock;
    for (const now of event.models) {
      const view = this.#models.get(now.name) ?? { now, steps: [], history: new History(), at: event.at };
      this.#models.set(now.name, view);
      view.now = now;
      view.at = event.at;
      this.#mark(now);
      append(view.steps, now.steps);
      view.history.add(event.at, now);
    }
    for (const [name, view] of this.#models) {
      if (event.at - view.at > HISTORY_SECONDS) this.#models.delete(name);
    }
    for (const listener of this.#listeners) listener();
  }

  /** The server is silent while nothing changes. Then this lets the plots go on with the latest values. */
  tick(clock: number): void {
    const silent = clock - this.#arrived;
    if (!this.latest || silent < SILENCE) return;
    const models = this.latest.models.map((model) => ({ ...model, steps: [] }));
    this.add({ ...this.latest, at: this.latest.at + silent, models }, clock);
  }

  /** Forgets everything. */
  clear(): void {
    this.latest = null;
    this.#models.clear();
    for (const listener of this.#listeners) listener();
  }

  /** Gives colours to new tenants in alphabetical order. */
  #mark({ steps, pages, queue }: ModelNow): void {
    const names = new Set([
      ...Object.keys(pages?.tenants ?? {}),
      ...(queue?.tenants ?? []).map(({ name }) => name),
      ...tenantsOf(steps),
    ]);
    for (const name of [...names].sort()) this.tenants.of(name);
  }
}
