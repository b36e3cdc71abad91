/** What the server does now. */
export function LiveView() {
  return <p class="empty">Live</p>;
}
