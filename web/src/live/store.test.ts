import assert from "node:assert/strict";
import { test } from "node:test";

import { liveEvent, modelNow } from "./fixtures.ts";
import { HISTORY_SECONDS } from "./history.ts";
import { Store } from "./store.ts";

test("the steps of several events are joined", () => {
  const store = new Store();
  store.add(liveEvent(1, modelNow({ steps: [{ seconds: 1, rows: [] }] })));
  store.add(
    liveEvent(
      2,
      modelNow({
        steps: [
          { seconds: 2, rows: [] },
          { seconds: 3, rows: [] },
        ],
      }),
    ),
  );
  assert.deepEqual(
    store.view("small")?.steps.map((step) => step.seconds),
    [1, 2, 3],
  );
});

test("a model that is gone is forgotten when its plots would be empty", () => {
  const store = new Store();
  store.add(liveEvent(1, modelNow({ name: "old" }), modelNow()));
  store.add(liveEvent(HISTORY_SECONDS, modelNow()));
  assert.ok(store.view("old"));
  store.add(liveEvent(HISTORY_SECONDS + 2, modelNow()));
  assert.equal(store.view("old"), undefined);
});

test("listeners hear of each event until they stop", () => {
  const store = new Store();
  let heard = 0;
  const stop = store.listen(() => (heard += 1));
  store.add(liveEvent(1));
  store.clear();
  stop();
  store.add(liveEvent(2));
  assert.equal(heard, 2);
});
