import assert from "node:assert/strict";
import { test } from "node:test";

import { newAnswer, NO_SETTINGS, type Answer, type Conversation, type Settings } from "./types.ts";
import { advanced, requestBody, SettingsError, StreamError, wireMessages } from "./wire.ts";

function conversation(settings: Partial<Settings> = {}, messages: Conversation["messages"] = []): Conversation {
  return { id: "1", changedAt: 0, version: 0, model: "", settings: { ...NO_SETTINGS, ...settings }, messages };
}

function answer(changes: Partial<Answer>): Answer {
  return { ...newAnswer("m"), ending: "stop", ...changes };
}

function chunk(delta: object, reason: string | null = null): string {
  return JSON.stringify({ choices: [{ index: 0, delta, finish_reason: reason }] });
}

test("empty settings are not sent", () => {
  const { model, messages, stream } = requestBody(conversation(), "m");
  assert.deepEqual([model, messages, stream], ["m", [], true]);
  assert.ok(!("temperature" in requestBody(conversation(), "m")));
});

test("settings are sent with the names of the API", () => {
  const body = requestBody(conversation({ temperature: "0", topP: " 0.5 ", maxTokens: "7", effort: "low", tools: "[]" }), "m");
  assert.equal(body["temperature"], 0);
  assert.equal(body["top_p"], 0.5);
  assert.equal(body["max_tokens"], 7);
  assert.equal(body["reasoning_effort"], "low");
  assert.deepEqual(body["tools"], []);
});

test("a setting that cannot be sent is named", () => {
  const wrong: [Partial<Settings>, RegExp][] = [
    [{ temperature: "hot" }, /^Temperature must be a number from 0 to 2/],
    [{ topP: "1.1" }, /^Top P/],
    [{ maxTokens: "1.5" }, /^Max tokens must be a whole number/],
    [{ maxTokens: "0" }, /^Max tokens/],
    [{ tools: "{" }, /^Tools must be JSON/],
    [{ tools: "{}" }, /^Tools must be a JSON list/],
  ];
  for (const [settings, message] of wrong) {
    assert.throws(() => requestBody(conversation(settings), "m"), { constructor: SettingsError, message });
  }
});

test("a question after a failed answer continues the one before it", () => {
  const messages = wireMessages(
    conversation({ system: "Be brief." }, [
      { role: "user", text: "a" },
      answer({ ending: "failed" }),
      { role: "user", text: "b" },
      answer({ text: "c" }),
    ]),
  );
  assert.deepEqual(messages, [
    { role: "system", content: "Be brief." },
    { role: "user", content: "a\n\nb" },
    { role: "assistant", content: "c" },
  ]);
});

test("calls go with the results that the user gave", () => {
  const call = { id: "1", name: "clock", arguments: "{}", result: "12:30" };
  const messages = wireMessages(conversation({}, [answer({ calls: [call, { ...call, id: "2", result: null }] })]));
  assert.deepEqual(
    messages.map(({ role, content, tool_call_id: id }) => [role, content, id]),
    [["assistant", "", undefined], ["tool", "12:30", "1"], ["tool", "(no result)", "2"]],
  );
});

test("an answer grows by the deltas of its events", () => {
  let grown = newAnswer("m");
  const events: [string, number][] = [
    [chunk({ role: "assistant", content: "" }), 0.1],
    [chunk({ reasoning_content: "hm" }), 0.5],
    [chunk({ content: "Hel" }), 0.6],
    [chunk({ content: "lo" }, "stop"), 0.7],
    [JSON.stringify({ choices: [], timings: { predicted_per_second: 20, predicted_n: 2, cache_n: 4, prompt_n: 5 } }), 0.7],
    [JSON.stringify({ choices: [], usage: { prompt_tokens: 9, completion_tokens: 3, prompt_tokens_details: { cached_tokens: 4 } } }), 0.7],
    ["[DONE]", 0.8],
  ];
  for (const [data, seconds] of events) grown = advanced(grown, data, seconds);
  assert.deepEqual([grown.text, grown.thoughts, grown.ending], ["Hello", "hm", "stop"]);
  assert.deepEqual(grown.stats, {
    firstToken: 0.5, promptTokens: 9, cachedTokens: 4, answerTokens: 3, tokensPerSecond: 20,
  });
});

test("a stopped answer has the numbers of its last chunk", () => {
  const timings = { predicted_per_second: 0, predicted_n: 1, cache_n: 4, prompt_n: 5 };
  const { stats } = advanced(newAnswer("m"), JSON.stringify({ choices: [], timings }), 0.7);
  assert.deepEqual(stats, {
    firstToken: null, promptTokens: 9, cachedTokens: 4, answerTokens: 1, tokensPerSecond: null,
  });
});

test("the parts of calls are joined by their index", () => {
  let grown = newAnswer("m");
  for (const calls of [
    [{ index: 0, id: "a", function: { name: "one", arguments: "" } }],
    [{ index: 0, function: { arguments: '{"x":' } }, { index: 1, id: "b", function: { name: "two", arguments: "{}" } }],
    [{ index: 0, function: { arguments: "1}" } }],
  ]) {
    grown = advanced(grown, chunk({ tool_calls: calls }), 1);
  }
  grown = advanced(grown, chunk({}, "tool_calls"), 1);
  assert.deepEqual(
    grown.calls.map(({ id, name, arguments: text }) => [id, name, text]),
    [["a", "one", '{"x":1}'], ["b", "two", "{}"]],
  );
  assert.equal(grown.ending, "tool_calls");
});

test("an answer is not changed in place", () => {
  const before = newAnswer("m");
  advanced(before, chunk({ content: "x", tool_calls: [{ index: 0, id: "a" }] }), 1);
  assert.deepEqual(before, newAnswer("m"));
});

test("an error inside a stream is thrown", () => {
  const data = JSON.stringify({ error: { message: "The engine failed." } });
  assert.throws(() => advanced(newAnswer("m"), data, 1), { constructor: StreamError, message: "The engine failed." });
});
