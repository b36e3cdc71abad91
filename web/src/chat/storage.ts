// Conversations in this browser, in IndexedDB.
import type { Conversation } from "./types.ts";

const NAME = "cortex";
const STORE = "conversations";

/** How many conversations are kept. The ones that changed last stay. */
export const MAX_CONVERSATIONS = 200;

/** Splits conversations into those that are kept, the newest first, and those that are too many. */
export function bounded(conversations: Conversation[], max = MAX_CONVERSATIONS): [Conversation[], Conversation[]] {
  const sorted = conversations.toSorted((one, other) => other.changedAt - one.changedAt);
  return [sorted.slice(0, max), sorted.slice(max)];
}

let opened: Promise<IDBDatabase> | null = null;

function database(): Promise<IDBDatabase> {
  opened ??= new Promise((resolve, reject) => {
    const opening = indexedDB.open(NAME, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error ?? new Error("IndexedDB cannot be opened"));
  });
  return opened;
}

async function run<T>(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const transaction = (await database()).transaction(STORE, mode);
  const request = act(transaction.objectStore(STORE));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error ?? new Error("IndexedDB has refused the change"));
  });
}

/** All kept conversations. Rejects if this browser keeps none, as some do in private windows. */
export function loadAll(): Promise<Conversation[]> {
  return run("readonly", (store) => store.getAll() as IDBRequest<Conversation[]>);
}

/** Rejects if the browser has no more room. */
export async function save(conversation: Conversation): Promise<void> {
  await run("readwrite", (store) => store.put(conversation));
}

export async function remove(id: string): Promise<void> {
  await run("readwrite", (store) => store.delete(id));
}
