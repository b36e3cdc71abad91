// The list of conversations. On narrow screens it is a drawer.
import { useEffect, useRef } from "preact/hooks";

import { Icon } from "../ui/icon.tsx";
import type { ChatStore } from "./store.ts";
import { titleOf } from "./types.ts";

interface SidebarProps {
  store: ChatStore;
  /** Whether the drawer is open; without effect on wide screens. */
  isOpen: boolean;
  onCreate: () => void;
  onClose: () => void;
}

export function Sidebar({ store, isOpen, onCreate, onClose }: SidebarProps) {
  const { conversations, current, deleted } = store;
  const close = useRef<HTMLButtonElement>(null);
  useEffect(() => {
    if (isOpen) close.current?.focus();
  }, [isOpen]);
  return (
    <>
      {isOpen ? <div class="scrim" onClick={onClose} /> : null}
      <nav class={isOpen ? "sidebar open" : "sidebar"} aria-label="Conversations">
        <div class="sidebar-head">
          <button type="button" class="button wide only-wide" onClick={onCreate}>
            <Icon name="plus" />
            New conversation
          </button>
          <h2 class="only-narrow">Conversations</h2>
          <button
            ref={close}
            type="button"
            class="button quiet square only-narrow"
            aria-label="Close the list"
            onClick={onClose}
          >
            <Icon name="close" />
          </button>
        </div>
        {conversations.length === 0 ? <p class="hint none">Your conversations stay in this browser.</p> : null}
        <ul class="conversations" aria-label="Conversations">
          {conversations.map((each) => {
            const title = titleOf(each);
            const isCurrent = each.id === current.id;
            return (
              <li key={each.id} class={isCurrent ? "current" : ""}>
                <button
                  type="button"
                  class="conversation"
                  aria-current={isCurrent ? "true" : undefined}
                  onClick={() => {
                    store.open(each.id);
                    onClose();
                  }}
                >
                  {store.isRunning(each.id) ? <span class="pulse" title="An answer is running" /> : null}
                  <span class="title" title={title}>{title}</span>
                </button>
                <button
                  type="button"
                  class="button quiet square delete"
                  aria-label={`Delete ${title}`}
                  title="Delete"
                  onClick={() => store.delete(each.id)}
                >
                  <Icon name="remove" />
                </button>
              </li>
            );
          })}
        </ul>
        <div role="status">
          {deleted === null ? null : (
            <div class="undo">
              <span>Deleted.</span>
              <button type="button" class="button quiet" onClick={() => store.undelete()}>
                Undo
              </button>
            </div>
          )}
        </div>
      </nav>
    </>
  );
}
