// Markdown of answers to HTML. Not safe by itself: `sanitise.ts` must clean the result.
import { Marked, type Token, type Tokens } from "marked";

import { highlighted } from "./highlight.ts";

/** Tags without attributes that answers may write themselves. Other HTML is shown as text. */
const OWN_TAG = /^<\/?(?:br|sub|sup|kbd|b|i|u|em|strong)\s*\/?>$/i;

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);
}

const markdown = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html({ text, block }: Tokens.HTML | Tokens.Tag): string {
      if (OWN_TAG.test(text.trim())) return text;
      const shown = escapeHtml(text.trimEnd());
      return block === true ? `<p>${shown.replaceAll("\n", "<br>")}</p>` : shown;
    },
    heading({ tokens, depth }: Tokens.Heading): string {
      // One level for all: the outline of the page belongs to the page.
      return `<h3 class="depth-${depth}">${this.parser.parseInline(tokens)}</h3>`;
    },
    image({ href, text }: Tokens.Image): string {
      return `<a href="${escapeHtml(href)}">${escapeHtml(text === "" ? "Image" : text)}</a>`;
    },
    checkbox({ checked }: Tokens.Checkbox): string {
      return checked ? "☑ " : "☐ ";
    },
    code({ text, lang }: Tokens.Code): string {
      const language = /^[\w+#.-]+/.exec(lang ?? "")?.[0] ?? "";
      return `<pre title="${escapeHtml(language)}"><code>${highlighted(text, language) ?? escapeHtml(text)}</code></pre>`;
    },
  },
});

/** A part of an answer that is rendered by itself, so that a growing answer renders only its last part again. */
export interface Block {
  /** Its source. Equal sources have equal HTML, unless `links` differ. */
  raw: string;
  html: () => string;
}

/** The blocks of an answer. Text that the parser cannot take, such as very deep nesting, becomes one plain block. */
export function blocks(source: string): Block[] {
  const plain: Block = { raw: source, html: () => `<p>${escapeHtml(source).replaceAll("\n", "<br>")}</p>` };
  let tokens: Token[];
  let links: unknown;
  try {
    const lexed = markdown.lexer(source);
    links = lexed.links;
    tokens = lexed.filter(({ type }) => type !== "space" && type !== "def");
  } catch {
    return [plain];
  }
  const suffix = JSON.stringify(links);
  return tokens.map((token) => ({ raw: token.raw + suffix, html: () => htmlOf(token) }));
}

function htmlOf(token: Token): string {
  try {
    return markdown.parser([token]);
  } catch {
    return `<p>${escapeHtml(token.raw)}</p>`;
  }
}
