import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";

import type { ModelNow } from "../types.ts";

interface Props {
  title: string;
  /** One line beside the title. */
  note?: ComponentChildren;
  class?: string;
  children: ComponentChildren;
}

/** A part of the live view with its heading. */
export function Region({ title, note, children, class: name = "" }: Props) {
  const id = useId();
  return (
    <section class={`live-region ${name}`} aria-labelledby={id}>
      <header>
        <h2 id={id}>{title}</h2> {note && <p class="live-note">{note}</p>}
      </header>
      {children}
    </section>
  );
}

/** What a region shows without data. */
export function Nothing({ children }: { children: ComponentChildren }) {
  return <p class="live-nothing">{children}</p>;
}

/** What a region shows of a model whose engine has not reported anything. */
export function NoReport({ model: { state, error } }: { model: ModelNow }) {
  if (error !== null) return <Nothing>{error}</Nothing>;
  return <Nothing>{state === "ready" ? "The engine has not reported yet." : "The model has no engine now."}</Nothing>;
}
