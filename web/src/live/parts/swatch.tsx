import type { Hatch } from "../patterns.ts";

interface Props {
  /** The name of a CSS variable. */
  colour: string;
  hatch?: Hatch;
  /** Stands in the swatch. */
  letter?: string;
}

/** A small sample of a fill, for legends and tables. */
export function Swatch({ colour, hatch = "plain", letter }: Props) {
  return (
    <span class={`live-swatch live-swatch-${hatch}`} style={{ backgroundColor: `var(${colour})` }} aria-hidden="true">
      {letter}
    </span>
  );
}
