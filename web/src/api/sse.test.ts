import assert from "node:assert/strict";
import { test } from "node:test";

import { EventParser } from "./sse.ts";

const STREAM = ': queued 2\n\nid: 1\ndata: {"a": 1}\n\ndata: first\r\ndata: second\r\n\r\ndata:[DONE]\n\n';

test("events are whole, wherever the stream is cut", () => {
  for (let size = 1; size <= STREAM.length; size += 1) {
    const comments: string[] = [];
    const parser = new EventParser((text) => comments.push(text));
    const events: string[] = [];
    for (let at = 0; at < STREAM.length; at += size) events.push(...parser.push(STREAM.slice(at, at + size)));
    assert.deepEqual(events, ['{"a": 1}', "first\nsecond", "[DONE]"], `in parts of ${size}`);
    assert.deepEqual(comments, ["queued 2"]);
  }
});

test("an event that has not ended is not returned", () => {
  const parser = new EventParser();
  assert.deepEqual(parser.push("data: half\n"), []);
  assert.deepEqual(parser.push("\n"), ["half"]);
});
