// Keeps one stream of live events open while somebody looks.

import type { LiveEvent } from "./types.ts";

/** Pauses before the next attempts, in seconds. */
export const PAUSES = [1, 2, 5, 10];

export type Status =
  | { kind: "connecting" }
  | { kind: "live" }
  | { kind: "closed" }
  /** The next attempt follows after a pause of some seconds. */
  | { kind: "broken"; reason: string; pause: number }
  /** The server refused: another attempt would be refused, too. */
  | { kind: "refused"; reason: string };

export interface Source {
  /** Opens the stream. Aborting the signal ends it. */
  open: (signal: AbortSignal) => AsyncIterable<LiveEvent>;
  /** Whether an error will be the same at the next attempt. */
  isFinal: (error: unknown) => boolean;
  onEvent: (event: LiveEvent) => void;
  onStatus: (status: Status) => void;
}

export class Feed {
  readonly #source: Source;
  #running: AbortController | null = null;

  constructor(source: Source) {
    this.#source = source;
  }

  /** Opens the stream and opens it again after each failure, until `close`. */
  open(): void {
    if (this.#running) return;
    this.#running = new AbortController();
    void this.#run(this.#running.signal);
  }

  close(): void {
    if (!this.#running) return;
    this.#running.abort();
    this.#running = null;
    this.#source.onStatus({ kind: "closed" });
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { open, isFinal, onEvent, onStatus } = this.#source;
    let failures = 0;
    while (!signal.aborted) {
      let isLive = false;
      let reason = "";
      onStatus({ kind: "connecting" });
      try {
        for await (const event of open(signal)) {
          if (signal.aborted) return;
          if (!isLive) onStatus({ kind: "live" });
          isLive = true;
          failures = 0;
          onEvent(event);
        }
      } catch (error) {
        if (signal.aborted) return;
        reason = error instanceof Error ? error.message : String(error);
        if (isFinal(error)) {
          this.#running = null;
          onStatus({ kind: "refused", reason });
          return;
        }
      }
      if (signal.aborted) return;
      const pause = PAUSES[Math.min(failures, PAUSES.length - 1)] ?? 1;
      failures += 1;
      if (reason) onStatus({ kind: "broken", reason, pause });
      else onStatus({ kind: "connecting" }); // the server ends each stream after some minutes
      await sleep(pause * 1000, signal);
    }
  }
}

/** Waits, or returns at once when the signal is aborted. */
function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", done, { once: true });
    function done(): void {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
  });
}
