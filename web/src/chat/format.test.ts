import assert from "node:assert/strict";
import { test } from "node:test";

import { prettyJson, statsLine } from "./format.ts";
import { bounded } from "./storage.ts";
import { NO_SETTINGS, titleOf, type Conversation } from "./types.ts";

function conversation(id: string, changedAt: number, text = ""): Conversation {
  return { id, changedAt, version: 0, model: "", settings: NO_SETTINGS, messages: text === "" ? [] : [{ role: "user", text }] };
}

test("the line of numbers leaves out what is not known", () => {
  const none = { firstToken: null, promptTokens: null, cachedTokens: null, answerTokens: null, tokensPerSecond: null };
  assert.equal(statsLine("m", none), "m");
  assert.equal(
    statsLine("m", { firstToken: 0.25, promptTokens: 1234, cachedTokens: 0, answerTokens: 5, tokensPerSecond: 12.34 }),
    "m · 12.3 tokens/s · 5 tokens · first token after 250 ms · 0 of 1,234 prompt tokens cached",
  );
});

test("JSON gets line breaks, other text stays", () => {
  assert.equal(prettyJson('{"a":1}'), '{\n  "a": 1\n}');
  assert.equal(prettyJson('{"a":'), '{"a":');
});

test("the oldest conversations are too many", () => {
  const [kept, old] = bounded([conversation("a", 1), conversation("b", 3), conversation("c", 2)], 2);
  assert.deepEqual(kept.map(({ id }) => id), ["b", "c"]);
  assert.deepEqual(old.map(({ id }) => id), ["a"]);
});

test("a title is one short line", () => {
  assert.equal(titleOf(conversation("a", 1)), "New conversation");
  assert.equal(titleOf(conversation("a", 1, " two\n lines ")), "two lines");
  assert.equal(titleOf(conversation("a", 1, "x".repeat(100))).length, 60);
});
