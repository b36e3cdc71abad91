// The API key: in this tab's session, or in the browser if the user wants it remembered.

const KEY = "cortex.key";
let inMemory = "";
const listeners = new Set<() => void>();

/** Call this function after each change of the key. Returns a function that ends it. */
export function onKeyChange(listener: () => void): () => void {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}

export function readKey(): string {
  try {
    return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? inMemory;
  } catch {
    return inMemory;
  }
}

/** Use this key from now on; an empty one is forgotten. */
export function saveKey(key: string, remember: boolean): void {
  inMemory = key;
  try {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
    if (key !== "") (remember ? localStorage : sessionStorage).setItem(KEY, key);
  } catch {
    // Without storage, the key lasts until the page is closed.
  }
  for (const listener of [...listeners]) listener();
}

export function isRemembered(): boolean {
  try {
    return localStorage.getItem(KEY) !== null;
  } catch {
    return false;
  }
}
