import type { ComponentChildren } from "preact";

/** An error, which screen readers read at once. */
export function Alert({ children }: { children: ComponentChildren }) {
  return (
    <div class="alert" role="alert">
      {children}
    </div>
  );
}
