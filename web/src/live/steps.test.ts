import assert from "node:assert/strict";
import { test } from "node:test";

import { append, ceiling, countsOf, MAX_STEPS, partsOf, sumOf, tenantsOf, totalOf } from "./steps.ts";
import type { Step } from "./types.ts";

const STEP: Step = {
  seconds: 0.02,
  rows: [
    ["bob", 0, 1, 4, 3],
    ["alice", 100, 0, 0, 0],
  ],
};

test("drafts are accepted or rejected", () => {
  assert.deepEqual(countsOf(["bob", 0, 1, 4, 3]), { prompt: 0, answer: 1, accepted: 3, rejected: 1 });
  assert.equal(totalOf(sumOf(STEP)), 105);
});

test("bars are stacked by kind or by tenant, without empty parts", () => {
  const kinds = partsOf(STEP, "kind").map(({ kind, tokens }) => [kind, tokens]);
  assert.deepEqual(kinds, [
    ["prompt", 100],
    ["answer", 1],
    ["accepted", 3],
    ["rejected", 1],
  ]);
  const tenants = partsOf({ ...STEP, rows: [...STEP.rows, ["carol", 0, 0, 0, 0]] }, "tenant");
  assert.deepEqual(
    tenants.map(({ tenant, tokens }) => [tenant, tokens]),
    [
      ["bob", 5],
      ["alice", 100],
    ],
  );
});

test("the newest steps stay", () => {
  const steps: Step[] = [];
  for (let seconds = 0; seconds < 2 * MAX_STEPS; seconds += 1) append(steps, [{ seconds, rows: [] }]);
  assert.equal(steps.length, MAX_STEPS);
  assert.equal(steps.at(-1)?.seconds, 2 * MAX_STEPS - 1);
});

test("tenants have one fixed order", () => {
  assert.deepEqual(tenantsOf([STEP, STEP, { seconds: 1, rows: [["zoe", 1, 0, 0, 0]] }]), ["alice", "bob", "zoe"]);
});

test("axes end at round numbers", () => {
  assert.deepEqual([0, 10, 11, 47, 180, 512, 1000, 1001].map(ceiling), [10, 10, 20, 60, 200, 600, 1000, 2000]);
});
