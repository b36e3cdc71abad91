// Gives each tenant a colour and a letter, and keeps them while the page is open.

/** Colours in live.css: `--live-tenant-0` and so on. */
export const NUM_COLOURS = 8;
/** What the server calls all tenants that the viewer may not see. */
export const OTHERS = "others";

export interface Mark {
  name: string;
  /** The name of a CSS variable. */
  colour: string;
  /** Shows the tenant where a colour alone would. Letters are unique among the first 62 tenants. */
  letter: string;
}

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

export class Tenants {
  readonly #marks = new Map<string, Mark>();
  readonly #used = new Set<string>();
  #numNamed = 0;

  of(name: string): Mark {
    let mark = this.#marks.get(name);
    if (mark === undefined) {
      mark = { name, colour: this.#colour(name), letter: this.#letter(name) };
      this.#marks.set(name, mark);
    }
    return mark;
  }

  #colour(name: string): string {
    if (name === OTHERS) return "--live-others";
    return `--live-tenant-${this.#numNamed++ % NUM_COLOURS}`;
  }

  /** The first letter of the name, after its last colon, that is free; else the first free one. */
  #letter(name: string): string {
    const own = name.slice(name.lastIndexOf(":") + 1);
    const wanted = [...(own.toUpperCase().match(/[A-Z0-9]/g) ?? []), ...LETTERS];
    const letter = wanted.find((each) => !this.#used.has(each)) ?? "?";
    this.#used.add(letter);
    return letter;
  }
}
