// The colours of the current theme, for canvases, which cannot use CSS variables.

const known = new Map<string, string>();
let probe: HTMLElement | null = null;

/** The colour that a CSS variable has now, for example `--live-prompt`. */
export function colour(variable: string): string {
  let value = known.get(variable);
  if (value === undefined) {
    value = read(variable);
    known.set(variable, value);
  }
  return value;
}

/** Browsers compute `light-dark()` for properties of elements only, not for variables. */
function read(variable: string): string {
  if (!probe) {
    probe = document.createElement("span");
    probe.hidden = true;
    document.body.append(probe);
  }
  probe.style.color = `var(${variable})`;
  return getComputedStyle(probe).color;
}

/** Calls a function after the theme has changed, until the returned function is called. */
export function onTheme(listener: () => void): () => void {
  const changed = (): void => {
    known.clear();
    listener();
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = new MutationObserver(changed);
  chosen.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  system.addEventListener("change", changed);
  return () => {
    chosen.disconnect();
    system.removeEventListener("change", changed);
  };
}
