import assert from "node:assert/strict";
import { test } from "node:test";

import { bytes, count, percent, plural, rate, seconds, short } from "./format.ts";

const plain = (text: string) => text.replaceAll("\u202f", " ");

test("numbers are short", () => {
  assert.deepEqual([0, 999, 1234, 1234567].map(count).map(plain), ["0", "999", "1 234", "1 234 567"]);
  assert.deepEqual([0, 0.25, 9.5, 950, 1200, 35000, 2e6, -1500].map(short), [
    "0",
    "0.25",
    "9.5",
    "950",
    "1.2k",
    "35k",
    "2M",
    "-1.5k",
  ]);
  assert.deepEqual(
    [1, 2].map((each) => plural(each, "page")),
    ["1 page", "2 pages"],
  );
});

test("units fit the size", () => {
  assert.deepEqual([0, 0.0085, 0.12, 0.9999, 2.5].map(seconds).map(plain), [
    "0 ms",
    "8.5 ms",
    "120 ms",
    "1 s",
    "2.5 s",
  ]);
  assert.deepEqual([0, 1023, 1024, 512 * 2 ** 20, 3.4 * 2 ** 30].map(bytes).map(plain), [
    "0 B",
    "1023 B",
    "1 KiB",
    "512 MiB",
    "3.4 GiB",
  ]);
  assert.deepEqual([0, 3.25, 1900].map(rate).map(plain), ["0 tok/s", "3.3 tok/s", "1 900 tok/s"]);
});

test("a number that is not known is a dash", () => {
  for (const write of [count, short, seconds, bytes, rate])
    assert.deepEqual([null, undefined, NaN].map(write), ["–", "–", "–"]);
  assert.equal(percent(1, 0), "–");
  assert.equal(plain(percent(1, 3)), "33 %");
});
