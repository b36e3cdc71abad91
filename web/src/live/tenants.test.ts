import assert from "node:assert/strict";
import { test } from "node:test";

import { NUM_COLOURS, OTHERS, Tenants } from "./tenants.ts";

test("a tenant keeps its colour and its letter", () => {
  const tenants = new Tenants();
  const alice = tenants.of("alice");
  tenants.of("bob");
  assert.equal(tenants.of("alice"), alice);
  assert.equal(alice.letter, "A");
  assert.equal(tenants.of("user:carol").letter, "C");
});

test("letters differ, and so do the first colours", () => {
  const tenants = new Tenants();
  const marks = Array.from({ length: 40 }, (_, index) => tenants.of(`team ${index}`));
  assert.equal(new Set(marks.map(({ letter }) => letter)).size, 40);
  assert.equal(new Set(marks.map(({ colour }) => colour)).size, NUM_COLOURS);
});

test("all others have a colour that no tenant has", () => {
  const tenants = new Tenants();
  const others = tenants.of(OTHERS).colour;
  for (let index = 0; index < 40; index += 1) assert.notEqual(tenants.of(String(index)).colour, others);
});

test("more tenants than letters have marks, too", () => {
  const tenants = new Tenants();
  for (let index = 0; index < 100; index += 1) tenants.of(`tenant ${index}`);
  assert.equal(tenants.of("one more").letter, "?");
});
