// The messages of the open conversation.
import type { RefObject } from "preact";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";

import { AnswerView } from "./answer.tsx";
import { QuestionView } from "./question.tsx";
import type { ChatStore } from "./store.ts";

/** Pixels from the end within which the thread follows a growing answer. */
const NEAR_END = 80;

interface ThreadProps {
  store: ChatStore;
  field: RefObject<HTMLTextAreaElement | null>;
}

export function Thread({ store, field }: ThreadProps) {
  const { id, messages } = store.current;
  const isRunning = store.isRunning();
  const box = useRef<HTMLDivElement>(null);
  const isAtEnd = useRef(true);

  useLayoutEffect(() => {
    isAtEnd.current = true;
  }, [id, messages.length]);
  useLayoutEffect(() => scrollToEnd(), [messages]);
  useEffect(() => {
    const observer = new ResizeObserver(scrollToEnd); // also when the view is shown again
    if (box.current !== null) observer.observe(box.current);
    return () => observer.disconnect();
  }, []);

  function scrollToEnd(): void {
    if (isAtEnd.current && box.current !== null) box.current.scrollTop = box.current.scrollHeight;
  }

  return (
    <div
      ref={box}
      class="thread"
      role="log"
      aria-label="Conversation"
      aria-live="polite"
      tabIndex={0}
      onScroll={({ currentTarget: place }) => {
        isAtEnd.current = place.scrollHeight - place.scrollTop - place.clientHeight < NEAR_END;
      }}
    >
      <h2 class="sr-only">Conversation</h2>
      {messages.length === 0 ? (
        <div class="welcome">
          <p class="welcome-title">What can I help you with?</p>
          <p class="hint">Answers come from the model on this server. Conversations stay in this browser.</p>
        </div>
      ) : null}
      <div class="messages">
        {messages.map((message, index) =>
          message.role === "user" ? (
            <QuestionView
              key={`${id}-${index}`}
              text={message.text}
              canEdit={!isRunning}
              onEdit={(text) => {
                store.edit(index, text);
                field.current?.focus();
              }}
            />
          ) : (
            <AnswerView
              key={`${id}-${index}`}
              answer={message}
              isLast={index === messages.length - 1}
              position={store.position()}
              onRegenerate={() => {
                store.regenerate();
                field.current?.focus();
              }}
              onResults={(results) => store.sendResults(results)}
            />
          ),
        )}
      </div>
    </div>
  );
}
