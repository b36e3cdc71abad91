/** The chat. */
export function ChatView() {
  return <p class="empty">Chat</p>;
}
