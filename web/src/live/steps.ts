// The last steps of a model, and how their bars are stacked.

import type { Row, Step } from "./types.ts";

export const MAX_STEPS = 120;

export const KINDS = ["prompt", "answer", "accepted", "rejected"] as const;
export type Kind = (typeof KINDS)[number];
export const KIND_LABELS: Record<Kind, string> = {
  prompt: "Prompt",
  answer: "Answer",
  accepted: "Accepted drafts",
  rejected: "Rejected drafts",
};

/** A part of a bar. */
export interface Part {
  tokens: number;
  kind: Kind | null;
  tenant: string | null;
}

export type Counts = Record<Kind, number>;

/** The tokens of a row by kind. */
export function countsOf([, prompt, answer, drafted, accepted]: Row): Counts {
  return { prompt, answer, accepted, rejected: Math.max(0, drafted - accepted) };
}

export function totalOf(counts: Counts): number {
  return KINDS.reduce((sum, kind) => sum + counts[kind], 0);
}

/** The tokens of a whole step by kind. */
export function sumOf(step: Step): Counts {
  const sum: Counts = { prompt: 0, answer: 0, accepted: 0, rejected: 0 };
  for (const row of step.rows) {
    const counts = countsOf(row);
    for (const kind of KINDS) sum[kind] += counts[kind];
  }
  return sum;
}

/** The parts of a step's bar from the bottom up, without empty ones. */
export function partsOf(step: Step, by: "kind" | "tenant"): Part[] {
  const parts: Part[] =
    by === "kind"
      ? Object.entries(sumOf(step)).map(([kind, tokens]) => ({ tokens, kind: kind as Kind, tenant: null }))
      : step.rows.map((row) => ({ tokens: totalOf(countsOf(row)), kind: null, tenant: row[0] }));
  return parts.filter((part) => part.tokens > 0);
}

/** The names of all tenants in some steps, in alphabetical order. */
export function tenantsOf(steps: readonly Step[]): string[] {
  return [...new Set(steps.flatMap((step) => step.rows.map(([tenant]) => tenant)))].sort();
}

/** Appends steps and keeps the newest. */
export function append(steps: Step[], more: readonly Step[]): void {
  steps.push(...more);
  if (steps.length > MAX_STEPS) steps.splice(0, steps.length - MAX_STEPS);
}

/** A round number of at least the largest value: a digit with zeros, so that its half is whole. At least 10. */
export function ceiling(largest: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(largest, 10)));
  return power * ([1, 2, 3, 4, 6, 8, 10].find((each) => each * power >= largest) ?? 10);
}
