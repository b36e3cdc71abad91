// The live view: what the server does now.
import { useEffect, useMemo, useState } from "preact/hooks";

import { ApiError, errorMessage } from "../api/http.ts";
import { onKeyChange } from "../api/key.ts";
import { eventBatches } from "../api/sse.ts";
import { Alert } from "../ui/alert.tsx";
import { askForKey } from "../ui/keydialog.tsx";
import type { ColourBy } from "./choices.ts";
import { Feed, type Status } from "./feed.ts";
import "./live.css";
import { LatencyRegion } from "./regions/latency.tsx";
import { MemoryRegion } from "./regions/memory.tsx";
import { ModelsRegion } from "./regions/models.tsx";
import { PagesRegion } from "./regions/pages.tsx";
import { QueueRegion } from "./regions/queue.tsx";
import { StepsRegion } from "./regions/steps.tsx";
import { ThroughputRegion } from "./regions/throughput.tsx";
import { Store } from "./store.ts";
import type { LiveEvent } from "./types.ts";

/** Numbers change this often, in milliseconds: more often, nobody could read them. Steps and pages move with each event. */
const REFRESH = 1000;
const FINAL = [400, 401, 403, 404];

/** Outlives the view, so that the plots have their past when the user comes back. */
const store = new Store();

/** Shows what the server does while the tab is visible. */
export function LiveView() {
  const [status, setStatus] = useState<Status>({ kind: "connecting" });
  const [isPaused, setPaused] = useState(false);
  const [by, setBy] = useState<ColourBy>("kind");
  const [chosen, setChosen] = useState<string>();
  const event = useLatest();
  const feed = useFeed(setStatus, isPaused);
  useTicks(status.kind === "live");

  const models = event?.models ?? [];
  const shown =
    models.find(({ name }) => name === chosen) ?? models.find(({ state }) => state === "ready") ?? models[0];
  const view = shown && store.view(shown.name);
  return (
    <div class="live">
      <div class="live-bar-top">
        <StatusLine status={status} isPaused={isPaused} event={event} />
        <button type="button" class="button" onClick={() => setPaused(!isPaused)}>
          {isPaused ? "Continue" : "Pause"}
        </button>
        <fieldset class="live-choice">
          <legend>Colours show</legend>
          <Choice value="kind" text="kinds" {...{ by, setBy }} />
          <Choice value="tenant" text="tenants" {...{ by, setBy }} />
        </fieldset>
      </div>
      {status.kind === "refused" && (
        <Alert>
          <span>{status.reason}</span>
          <button type="button" class="button" onClick={() => feed.open()}>
            Try again
          </button>
        </Alert>
      )}
      {event && <ModelsRegion models={models} chosen={shown?.name} choose={setChosen} />}
      {shown && shown.error !== null && <Alert>{`${shown.name}: ${shown.error}`}</Alert>}
      {event && view && (
        <div class="live-grid" key={shown.name}>
          <StepsRegion store={store} view={view} by={by} />
          <PagesRegion store={store} view={view} by={by} />
          <QueueRegion store={store} view={view} />
          <LatencyRegion view={view} seesAll={event.sees_all} />
          <ThroughputRegion view={view} seesAll={event.sees_all} />
          <MemoryRegion view={view} />
        </div>
      )}
    </div>
  );
}

function Choice({
  value,
  text,
  by,
  setBy,
}: {
  value: ColourBy;
  text: string;
  by: ColourBy;
  setBy: (by: ColourBy) => void;
}) {
  return (
    <label>
      <input type="radio" name="live-colours" checked={by === value} onChange={() => setBy(value)} />
      {text}
    </label>
  );
}

function StatusLine({ status, isPaused, event }: { status: Status; isPaused: boolean; event: LiveEvent | null }) {
  return (
    <p class={`live-status live-status-${status.kind}`} role="status">
      {isPaused ? "Paused" : statusText(status)}
      {event && !event.sees_all && (
        <span class="live-faint"> You see your own requests; all others are one tenant, “others”.</span>
      )}
    </p>
  );
}

function statusText(status: Status): string {
  switch (status.kind) {
    case "connecting":
      return "Connecting …";
    case "live":
      return "Live";
    case "closed":
      return "Closed while nobody looks";
    case "broken":
      return `${status.reason} Next attempt in ${status.pause} s.`;
    case "refused":
      return "Not connected";
  }
}

/** The latest event, once in each REFRESH. */
function useLatest(): LiveEvent | null {
  const [event, setEvent] = useState(store.latest);
  useEffect(() => {
    let shownAt = 0;
    return store.listen(() => {
      const now = performance.now();
      if (store.latest && now - shownAt < REFRESH - 50) return;
      shownAt = now;
      setEvent(store.latest);
    });
  }, []);
  return event;
}

function useTicks(isLive: boolean): void {
  useEffect(() => {
    if (!isLive) return;
    const timer = setInterval(() => store.tick(Date.now() / 1000), REFRESH);
    return () => clearInterval(timer);
  }, [isLive]);
}

/** Keeps the stream open while the tab is visible and the view is not paused. */
function useFeed(onStatus: (status: Status) => void, isPaused: boolean): Feed {
  const feed = useMemo(
    () => new Feed({ open, isFinal, onEvent: (event) => store.add(event, Date.now() / 1000), onStatus }),
    [onStatus],
  );
  useEffect(() => {
    const follow = (): void => (document.hidden || isPaused ? feed.close() : feed.open());
    follow();
    document.addEventListener("visibilitychange", follow);
    const forgetKey = onKeyChange(() => {
      feed.close();
      store.clear(); // another tenant may see less
      follow();
    });
    return () => {
      document.removeEventListener("visibilitychange", follow);
      forgetKey();
      feed.close();
    };
  }, [feed, isPaused]);
  return feed;
}

async function* open(signal: AbortSignal): AsyncGenerator<LiveEvent> {
  for await (const batch of eventBatches("/v1/live", { signal })) {
    for (const data of batch) {
      const event = JSON.parse(data) as LiveEvent | { error: unknown };
      if ("error" in event) throw new ApiError(503, errorMessage(event) ?? "The server ended the stream.");
      yield event;
    }
  }
}

function isFinal(error: unknown): boolean {
  if (!(error instanceof ApiError)) return false;
  if (error.needsKey) askForKey(error.message);
  return FINAL.includes(error.status);
}
