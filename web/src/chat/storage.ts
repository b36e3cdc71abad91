// Conversations in this browser, in IndexedDB. All tabs have the same ones.
import type { Conversation } from "./types.ts";
import { mayWrite, versionOf } from "./versions.ts";

const NAME = "cortex";
const STORE = "conversations";

/** How many conversations are kept. The ones that changed last stay. */
export const MAX_CONVERSATIONS = 200;

/** Splits conversations into those that are kept, the newest first, and those that are too many. */
export function bounded(conversations: Conversation[], max = MAX_CONVERSATIONS): [Conversation[], Conversation[]] {
  const sorted = conversations.toSorted((one, other) => other.changedAt - one.changedAt);
  return [sorted.slice(0, max), sorted.slice(max)];
}

export interface Saved {
  isKept: boolean;
  /** What is stored now; undefined if another tab has deleted the conversation. */
  stored: Conversation | undefined;
}

/** Where conversations are kept. All methods reject if this browser keeps none, as some do in private windows. */
export interface Shelf {
  loadAll(): Promise<Conversation[]>;
  load(id: string): Promise<Conversation | undefined>;
  /** Keep this version, unless another tab has stored a newer one or deleted it. `isNew`: see `mayWrite`. */
  save(conversation: Conversation, isNew: boolean): Promise<Saved>;
  /** Remove it, unless a newer version than this one is stored. */
  remove(id: string, version?: number): Promise<void>;
  /** Call this function with the id of each conversation that another tab has changed or removed. */
  follow(listener: (id: string) => void): void;
}

export class BrowserShelf implements Shelf {
  #opened: Promise<IDBDatabase> | null = null;
  readonly #others = new BroadcastChannel(`${NAME}.${STORE}`);

  loadAll(): Promise<Conversation[]> {
    return this.#run("readonly", (store, give) => {
      const reading: IDBRequest<Conversation[]> = store.getAll();
      reading.onsuccess = () => give(reading.result);
    });
  }

  load(id: string): Promise<Conversation | undefined> {
    return this.#run("readonly", (store, give) => read(store, id, give));
  }

  async save(conversation: Conversation, isNew: boolean): Promise<Saved> {
    const saved = await this.#run<Saved>("readwrite", (store, give) =>
      read(store, conversation.id, (stored) => {
        const isKept = mayWrite(stored, conversation, isNew);
        if (isKept) store.put(conversation);
        give({ isKept, stored: isKept ? conversation : stored });
      }),
    );
    if (saved.isKept) this.#others.postMessage(conversation.id);
    return saved;
  }

  async remove(id: string, version = Infinity): Promise<void> {
    await this.#run<void>("readwrite", (store, give) =>
      read(store, id, (stored) => {
        if (stored !== undefined && versionOf(stored) <= version) store.delete(id);
        give();
      }),
    );
    this.#others.postMessage(id);
  }

  follow(listener: (id: string) => void): void {
    this.#others.onmessage = ({ data }: MessageEvent<string>) => listener(data);
  }

  #database(): Promise<IDBDatabase> {
    this.#opened ??= new Promise((resolve, reject) => {
      const opening = indexedDB.open(NAME, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
      opening.onsuccess = () => resolve(opening.result);
      opening.onerror = () => reject(opening.error ?? new Error("IndexedDB cannot be opened"));
    });
    return this.#opened;
  }

  /** Runs one transaction, which no other tab can interrupt. Returns what `act` has given. */
  async #run<T>(mode: IDBTransactionMode, act: (store: IDBObjectStore, give: (value: T) => void) => void): Promise<T> {
    const transaction = (await this.#database()).transaction(STORE, mode);
    return new Promise((resolve, reject) => {
      let given: T;
      act(transaction.objectStore(STORE), (value) => (given = value));
      transaction.oncomplete = () => resolve(given);
      transaction.onabort = () => reject(transaction.error ?? new Error("IndexedDB has refused the change"));
    });
  }
}

function read(store: IDBObjectStore, id: string, then: (stored: Conversation | undefined) => void): void {
  const reading: IDBRequest<Conversation | undefined> = store.get(id);
  reading.onsuccess = () => then(reading.result);
}
