import assert from "node:assert/strict";
import { test } from "node:test";

import { liveEvent, modelNow } from "./fixtures.ts";
import { HISTORY_SECONDS } from "./history.ts";
import { Store } from "./store.ts";

test("the steps of several events are joined", () => {
  const store = new Store();
  store.add(liveEvent(1, modelNow({ steps: [{ seconds: 1, rows: [] }] })), 0);
  const more = [2, 3].map((seconds) => ({ seconds, rows: [] }));
  store.add(liveEvent(2, modelNow({ steps: more })), 0);
  assert.deepEqual(
    store.view("small")?.steps.map((step) => step.seconds),
    [1, 2, 3],
  );
});

test("a model that is gone is forgotten when its plots would be empty", () => {
  const store = new Store();
  store.add(liveEvent(1, modelNow({ name: "old" }), modelNow()), 0);
  store.add(liveEvent(HISTORY_SECONDS, modelNow()), 0);
  assert.ok(store.view("old"));
  store.add(liveEvent(HISTORY_SECONDS + 2, modelNow()), 0);
  assert.equal(store.view("old"), undefined);
});

test("listeners hear of each event until they stop", () => {
  const store = new Store();
  let heard = 0;
  const stop = store.listen(() => (heard += 1));
  store.add(liveEvent(1), 0);
  store.clear();
  stop();
  store.add(liveEvent(2), 0);
  assert.equal(heard, 2);
});

test("plots go on while the server is silent", () => {
  const store = new Store();
  store.tick(99); // nothing is known yet
  store.add(
    liveEvent(1000, modelNow({ steps: [{ seconds: 1, rows: [] }], tokens_per_s: { prompt: 0, answer: 7 } })),
    100,
  );
  for (const clock of [100.5, 101, 102]) store.tick(clock);
  const view = store.view("small");
  assert.deepEqual(view?.history.times, [1000, 1001, 1002]);
  assert.deepEqual(view?.history.column("answerRate"), [7, 7, 7]);
  assert.equal(view?.steps.length, 1);
});
