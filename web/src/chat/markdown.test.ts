import assert from "node:assert/strict";
import { test } from "node:test";

import { blocks } from "./markdown.ts";

function html(source: string): string {
  return blocks(source).map((block) => block.html()).join("");
}

test("HTML of an answer is shown as text", () => {
  const shown = html('<img src=x onerror="alert(1)">\n\ntext <b>bold</b> <script>alert(2)</script> <b onclick="x">');
  assert.ok(!/<(img|script)/.test(shown), shown);
  assert.ok(shown.includes("<b>bold</b>"));
  assert.ok(!shown.includes('<b onclick'));
});

test("the language of a fence cannot leave its attribute", () => {
  const shown = html('```js" onmouseover="alert(1)\n1 < 2\n```');
  assert.ok(shown.startsWith('<pre title="js"><code>'), shown);
  assert.ok(html('```"><script>\n<script>\n```').startsWith('<pre title=""><code>&#60;script&#62;'));
});

test("an open fence is code", () => {
  assert.ok(html("```python\nx = 1").includes("hljs-number"));
});

test("images are links", () => {
  assert.equal(html("![cat](https://example.org/cat.png)").trim(), '<p><a href="https://example.org/cat.png">cat</a></p>');
});

test("headings have one level", () => {
  assert.equal(html("# a\n\n#### b"), '<h3 class="depth-1">a</h3><h3 class="depth-4">b</h3>');
});

test("very deep nesting is shown as text", () => {
  const source = ">".repeat(20_000) + " <i>x";
  const shown = html(source);
  assert.ok(shown.length > 0);
  assert.ok(!shown.includes("<i>x"));
});

test("the source of a block changes with the links that it may use", () => {
  const [before] = blocks("[a]");
  const [after] = blocks("[a]\n\n[a]: https://example.org");
  assert.notEqual(before?.raw, after?.raw);
});

test("blocks before the last one keep their source while an answer grows", () => {
  const first = blocks("One.\n\nTwo");
  const second = blocks("One.\n\nTwo grows");
  assert.equal(first[0]?.raw, second[0]?.raw);
});
