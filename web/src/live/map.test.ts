import assert from "node:assert/strict";
import { test } from "node:test";

import { grid } from "./map.ts";

test("the cells of a map fit its width", () => {
  for (const cells of [0, 1, 7, 64, 256]) {
    for (const width of [296, 360, 700, 1400]) {
      const { columns, rows, size } = grid(cells, width);
      assert.ok(columns * rows >= cells);
      assert.ok(columns * size <= width + 1e-6);
      assert.ok(size >= 12, `${cells} cells of ${size} in ${width}`);
    }
  }
});
