// Markdown of an answer as safe nodes.
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";

import { copyText } from "../ui/copy.ts";
import { blocks, type Block } from "./markdown.ts";
import { sanitised } from "./sanitise.ts";

export function Rendered({ text }: { text: string }) {
  const parts = useMemo(() => blocks(text), [text]);
  return (
    <div class="prose">
      {parts.map((block, index) => (
        <BlockView key={index} block={block} />
      ))}
    </div>
  );
}

/** Its nodes are made again only if its source has changed: most blocks of a growing answer have not. */
function BlockView({ block }: { block: Block }) {
  const place = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const nodes = sanitised(block.html());
    for (const pre of nodes.querySelectorAll("pre")) frame(pre);
    for (const table of nodes.querySelectorAll("table")) makeScrollable(table);
    place.current?.replaceChildren(nodes);
  }, [block.raw]);
  return <div ref={place} />;
}

/** Gives code a bar with its language and a button that copies it. */
function frame(pre: HTMLPreElement): void {
  const code = pre.textContent;
  const figure = element("div", "code");
  const bar = element("div", "code-bar");
  const language = element("span");
  language.textContent = pre.title;
  pre.removeAttribute("title");
  const button = element("button", "code-copy");
  button.setAttribute("type", "button");
  button.textContent = "Copy code";
  button.addEventListener("click", () => {
    void copyText(code).then((isCopied) => {
      button.textContent = isCopied ? "Copied" : "Copying failed";
      setTimeout(() => {
        button.textContent = "Copy code";
      }, 2000);
    });
  });
  bar.append(language, button);
  pre.replaceWith(figure);
  pre.tabIndex = 0; // so that the keyboard can scroll it
  figure.append(bar, pre);
}

function makeScrollable(table: HTMLTableElement): void {
  const box = element("div", "table");
  box.tabIndex = 0;
  table.replaceWith(box);
  box.append(table);
}

function element(name: string, className = ""): HTMLElement {
  const made = document.createElement(name);
  made.className = className;
  return made;
}
