// A question of the user, which can be edited.
import { useLayoutEffect, useRef, useState } from "preact/hooks";

import { CopyButton } from "../ui/copybutton.tsx";
import { Icon } from "../ui/icon.tsx";
import { fitHeight, sends } from "./composer.tsx";

interface QuestionProps {
  text: string;
  canEdit: boolean;
  onEdit: (text: string) => void;
}

export function QuestionView({ text, canEdit, onEdit }: QuestionProps) {
  const [draft, setDraft] = useState<string | null>(null);
  const field = useRef<HTMLTextAreaElement>(null);
  const opener = useRef<HTMLButtonElement>(null);
  const isEditing = draft !== null;
  useLayoutEffect(() => {
    if (isEditing) field.current?.focus();
  }, [isEditing]);
  useLayoutEffect(() => fitHeight(field.current), [draft]);

  function close(): void {
    setDraft(null);
    setTimeout(() => opener.current?.focus());
  }

  function send(event: Event): void {
    event.preventDefault();
    const edited = draft?.trim() ?? "";
    if (edited === "") return;
    setDraft(null);
    onEdit(edited);
  }

  return (
    <article class={isEditing ? "question editing" : "question"} aria-label="Question">
      {draft === null ? (
        <>
          <div class="bubble">{text}</div>
          <div class="message-tools">
            <CopyButton text={text} />
            <button
              ref={opener}
              type="button"
              class="button quiet small"
              disabled={!canEdit}
              onClick={() => setDraft(text)}
            >
              <Icon name="edit" />
              Edit
            </button>
          </div>
        </>
      ) : (
        <form
          class="edit"
          onSubmit={send}
          onKeyDown={(event) => {
            if (event.key !== "Escape") return;
            event.stopPropagation();
            close();
          }}
        >
          <textarea
            ref={field}
            aria-label="Edited question"
            value={draft}
            onInput={(event) => setDraft(event.currentTarget.value)}
            onKeyDown={(event) => {
              if (sends(event)) send(event);
            }}
          />
          <p class="hint">The messages below it are replaced.</p>
          <div class="actions">
            <button type="button" class="button" onClick={close}>
              Cancel
            </button>
            <button type="submit" class="button primary" disabled={!canEdit || draft.trim() === ""}>
              Ask again
            </button>
          </div>
        </form>
      )}
    </article>
  );
}
