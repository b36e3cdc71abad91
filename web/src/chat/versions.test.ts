import assert from "node:assert/strict";
import { test } from "node:test";

import { newAnswer, NO_SETTINGS, type Conversation } from "./types.ts";
import { completed, mayWrite, versionOf, versionOfAction } from "./versions.ts";

function conversation(version: number): Conversation {
  return { id: "1", changedAt: 0, version, model: "", settings: NO_SETTINGS, messages: [] };
}

/** As pages without versions stored it. */
function unversioned(changedAt: number): Conversation {
  const { version, ...rest } = { ...conversation(0), changedAt };
  return rest as Conversation;
}

test("what the user does is newer than what an answer has added meanwhile", () => {
  const asked = versionOfAction(0, 1_000_000);
  const grown = asked + 300; // kept every two seconds for ten minutes
  assert.ok(versionOfAction(asked, 1_002_000) > grown);
  assert.equal(versionOfAction(grown, 999), grown + 1, "a clock that was set back makes nothing older");
});

test("only a newer version is written", () => {
  assert.ok(mayWrite(conversation(1), conversation(2), false));
  assert.ok(!mayWrite(conversation(2), conversation(2), false));
  assert.ok(!mayWrite(conversation(3), conversation(2), true));
});

test("what is not stored any more was deleted", () => {
  assert.ok(mayWrite(undefined, conversation(2), true));
  assert.ok(!mayWrite(undefined, conversation(2), false));
});

test("without a version, the time of the last question is the version", () => {
  assert.equal(versionOf(unversioned(7)), 7);
  assert.equal(completed(unversioned(7)).version, 7);
  assert.ok(mayWrite(unversioned(7), conversation(8), false));
  assert.ok(!mayWrite(unversioned(7), conversation(6), false));
});

test("an answer that was running has another ending", () => {
  const running = { ...conversation(1), messages: [newAnswer("m"), { ...newAnswer("m"), ending: "stop" as const }] };
  const endings = (each: Conversation): unknown[] => each.messages.map((message) => "ending" in message && message.ending);
  assert.deepEqual(endings(completed(running)), ["lost", "stop"]);
  assert.deepEqual(endings(completed(running, "stopped")), ["stopped", "stop"]);
});
