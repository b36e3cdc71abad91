// The theme: the system's, until the user chooses one.

export type Theme = "dark" | "light";

const KEY = "cortex.theme";

/** The theme that is shown now. */
export function currentTheme(): Theme {
  const chosen = document.documentElement.dataset["theme"];
  if (chosen === "dark" || chosen === "light") return chosen;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** Show the theme that the user chose in an earlier visit, if any. */
export function restoreTheme(): void {
  const chosen = read();
  if (chosen !== null) document.documentElement.dataset["theme"] = chosen;
}

export function chooseTheme(theme: Theme): void {
  document.documentElement.dataset["theme"] = theme;
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // Without storage, the choice lasts until the page is closed.
  }
}

function read(): Theme | null {
  try {
    const value = localStorage.getItem(KEY);
    return value === "dark" || value === "light" ? value : null;
  } catch {
    return null;
  }
}
