import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";

import { Feed, PAUSES, type Source, type Status } from "./feed.ts";
import { liveEvent } from "./fixtures.ts";
import type { LiveEvent } from "./types.ts";

/** Lets everything happen that needs no time. */
const settle = () => new Promise<void>((resolve) => setImmediate(resolve));

type Stream = (signal: AbortSignal) => AsyncGenerator<LiveEvent>;

/** A feed whose attempts get one stream after another. The last one is repeated. */
function feedOf(context: TestContext, streams: Stream[], isFinal = (_: unknown) => false) {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const events: number[] = [];
  const statuses: Status[] = [];
  let opened = 0;
  const source: Source = {
    open: (signal) => (streams[opened++] ?? streams.at(-1) ?? fails)(signal),
    isFinal,
    onEvent: (event) => events.push(event.at),
    onStatus: (status) => statuses.push(status),
  };
  return { feed: new Feed(source), events, statuses, opened: () => opened };
}

async function* fails(): AsyncGenerator<LiveEvent> {
  throw new Error("No way.");
}

async function* ends(): AsyncGenerator<LiveEvent> {
  yield liveEvent(1);
}

async function* lasts(signal: AbortSignal): AsyncGenerator<LiveEvent> {
  yield liveEvent(1);
  await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
  yield liveEvent(2);
}

test("a stream that ended is opened again after a pause", async (context) => {
  const { feed, events, statuses } = feedOf(context, [ends, lasts]);
  feed.open();
  await settle();
  assert.deepEqual(
    statuses.map(({ kind }) => kind),
    ["connecting", "live", "connecting"],
  );
  context.mock.timers.tick(1000 * (PAUSES[0] ?? 0));
  await settle();
  assert.deepEqual(events, [1, 1]);
  feed.close();
});

test("pauses grow while the server fails", async (context) => {
  const { feed, statuses, opened } = feedOf(context, [fails]);
  feed.open();
  for (const pause of [...PAUSES, PAUSES.at(-1) ?? 0]) {
    await settle();
    assert.deepEqual(statuses.at(-1), { kind: "broken", reason: "No way.", pause });
    context.mock.timers.tick(1000 * pause);
  }
  await settle();
  assert.equal(opened(), PAUSES.length + 2);
  feed.close();
});

test("a refusal ends the attempts until the feed is opened again", async (context) => {
  const { feed, statuses, opened } = feedOf(context, [fails, lasts], () => true);
  feed.open();
  await settle();
  assert.deepEqual(statuses.at(-1), { kind: "refused", reason: "No way." });
  context.mock.timers.tick(60_000);
  await settle();
  assert.equal(opened(), 1);
  feed.open();
  await settle();
  assert.deepEqual(statuses.at(-1), { kind: "live" });
  feed.close();
});

test("a closed feed reports no event and makes no attempt", async (context) => {
  const { feed, events, statuses, opened } = feedOf(context, [lasts]);
  feed.open();
  feed.open();
  await settle();
  feed.close();
  feed.close();
  await settle();
  context.mock.timers.tick(60_000);
  await settle();
  assert.equal(opened(), 1);
  assert.deepEqual(events, [1]);
  assert.deepEqual(
    statuses.map(({ kind }) => kind),
    ["connecting", "live", "closed"],
  );
});

test("a feed that is closed in a pause stays closed", async (context) => {
  const { feed, opened } = feedOf(context, [fails]);
  feed.open();
  await settle();
  feed.close();
  context.mock.timers.tick(60_000);
  await settle();
  assert.equal(opened(), 1);
});
