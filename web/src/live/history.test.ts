import assert from "node:assert/strict";
import { test } from "node:test";

import { modelNow } from "./fixtures.ts";
import { History, HISTORY_SECONDS } from "./history.ts";

const answering = (answer: number) => modelNow({ tokens_per_s: { prompt: 0, answer } });

test("a second keeps its last report", () => {
  const history = new History();
  for (const [at, rate] of [
    [10.0, 1],
    [10.25, 2],
    [11.0, 3],
  ] as const)
    history.add(at, answering(rate));
  assert.deepEqual(history.times, [10, 11]);
  assert.deepEqual(history.column("answerRate"), [2, 3]);
  assert.deepEqual(history.column("ttft50"), [null, null]);
});

test("a long pause is a gap, a short one is none", () => {
  const history = new History();
  for (const at of [10, 14, 30]) history.add(at, answering(1));
  assert.deepEqual(history.times, [10, 14, 15, 30]);
  assert.deepEqual(history.column("answerRate"), [1, 1, null, 1]);
});

test("the history ends after five minutes", () => {
  const history = new History();
  for (let at = 0; at < 3 * HISTORY_SECONDS; at += 0.25) history.add(at, answering(at));
  assert.equal(history.times.length, HISTORY_SECONDS + 1);
  assert.equal(history.column("bytes").length, HISTORY_SECONDS + 1);
  assert.equal(history.times.at(-1), 3 * HISTORY_SECONDS - 1);
});

test("a clock that was set back starts the history again", () => {
  const history = new History();
  history.add(1000, answering(1));
  history.add(10, answering(2));
  assert.deepEqual(history.times, [10]);
  assert.deepEqual(history.column("answerRate"), [2]);
});

test("a summary is of the last seconds and leaves out what is not known", () => {
  const history = new History();
  for (const [at, rate] of [
    [1, 100],
    [41, 2],
    [100, 4],
  ] as const)
    history.add(at, answering(rate));
  assert.deepEqual(history.summary("answerRate", 60), { mean: 3, highest: 4 });
  assert.deepEqual(history.summary("answerRate", HISTORY_SECONDS), { mean: 106 / 3, highest: 100 });
  assert.deepEqual(history.summary("ttft50", 60), { mean: null, highest: null });
});
