// Versions of a conversation: several tabs change it, and the newest version stays.
import { NO_SETTINGS, type Conversation, type Ending } from "./types.ts";

/** The version after a change by the user. A growing answer only adds 1, so it is older than what users do meanwhile. */
export function versionOfAction(before: number, now = Date.now()): number {
  return Math.max(now, before + 1);
}

/**
 * Whether a tab may write a version over what is stored. `isNew`: whether this tab has never seen it stored; then
 * nobody can have deleted it.
 */
export function mayWrite(stored: Conversation | undefined, next: Conversation, isNew: boolean): boolean {
  return stored === undefined ? isNew : versionOf(stored) < next.version;
}

/** Earlier pages stored no versions. */
export function versionOf(stored: Conversation): number {
  return (stored as Partial<Conversation>).version ?? stored.changedAt;
}

/** A conversation with all fields. Answers that run in it got another ending: they do not run in this tab. */
export function completed(stored: Conversation, ending: Ending = "lost"): Conversation {
  const messages = stored.messages.map((message) =>
    message.role === "assistant" && message.ending === "running" ? { ...message, ending } : message,
  );
  return { ...stored, version: versionOf(stored), settings: { ...NO_SETTINGS, ...stored.settings }, messages };
}
