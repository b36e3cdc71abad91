// The field for the next question.
import type { RefObject } from "preact";
import { useLayoutEffect, useState } from "preact/hooks";

import { Icon } from "../ui/icon.tsx";
import type { ChatStore } from "./store.ts";

interface ComposerProps {
  store: ChatStore;
  field: RefObject<HTMLTextAreaElement | null>;
}

/** Whether this key press sends a message: Enter, but not with Shift, not on a touch keyboard, not while composing. */
export function sends(event: KeyboardEvent): boolean {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return false;
  return event.ctrlKey || event.metaKey || !matchMedia("(pointer: coarse)").matches;
}

/** Makes a text field as high as its text; its style sheet limits it. */
export function fitHeight(field: HTMLTextAreaElement | null): void {
  if (field === null || field.offsetParent === null) return; // hidden text has no height
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

export function Composer({ store, field }: ComposerProps) {
  const [text, setText] = useState("");
  const isRunning = store.isRunning();
  useLayoutEffect(() => fitHeight(field.current), [text]);

  function send(event: Event): void {
    event.preventDefault();
    if (isRunning || text.trim() === "") return;
    store.send(text.trim());
    setText("");
  }

  return (
    <form class="composer" onSubmit={send}>
      <div class="composer-box">
        <textarea
          ref={field}
          rows={1}
          aria-label="Message"
          placeholder="Ask something"
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (sends(event)) send(event);
          }}
        />
        {isRunning ? (
          <button
            type="button"
            class="button primary square round"
            aria-label="Stop"
            title="Stop"
            onClick={() => {
              store.stop();
              field.current?.focus();
            }}
          >
            <Icon name="stop" />
          </button>
        ) : (
          <button
            type="submit"
            class="button primary square round"
            aria-label="Send"
            title="Send"
            disabled={text.trim() === ""}
          >
            <Icon name="send" />
          </button>
        )}
      </div>
    </form>
  );
}
