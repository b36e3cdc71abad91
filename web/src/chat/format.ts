// Numbers and JSON as text.
import type { Stats } from "./types.ts";

const NUMBER = new Intl.NumberFormat("en");
const ONE_PLACE = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** The line below an answer: its model, speed, length, wait and cached tokens, as far as they are known. */
export function statsLine(model: string, stats: Stats): string {
  const parts = [model];
  if (stats.tokensPerSecond !== null) parts.push(`${ONE_PLACE.format(stats.tokensPerSecond)} tokens/s`);
  if (stats.answerTokens !== null) parts.push(`${NUMBER.format(stats.answerTokens)} tokens`);
  if (stats.firstToken !== null) parts.push(`first token after ${duration(stats.firstToken)}`);
  if (stats.promptTokens !== null && stats.cachedTokens !== null) {
    parts.push(`${NUMBER.format(stats.cachedTokens)} of ${NUMBER.format(stats.promptTokens)} prompt tokens cached`);
  }
  return parts.filter((part) => part !== "").join(" · ");
}

export function duration(seconds: number): string {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${ONE_PLACE.format(seconds)} s`;
}

/** JSON with line breaks; other text as it is. */
export function prettyJson(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
