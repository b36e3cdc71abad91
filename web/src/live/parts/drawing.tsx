import { useEffect, useRef } from "preact/hooks";

import { onTheme } from "../colours.ts";
import type { Store } from "../store.ts";

export type Draw = (context: CanvasRenderingContext2D, width: number, height: number) => void;

interface Props {
  /** What the picture shows, for those who do not see it. */
  label: string;
  /** Draws again after each of its events. */
  store: Store;
  /** In CSS pixels, of the given width. */
  height: (width: number) => number;
  draw: Draw;
}

/** A canvas as wide as its place. It draws in CSS pixels, and sharply on every screen. */
export function Drawing({ label, store, height, draw }: Props) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const current = useRef({ height, draw });
  const redraw = useRef(() => {});
  current.current = { height, draw };

  useEffect(() => {
    const element = canvas.current;
    const context = element?.getContext("2d");
    if (!element || !context) return;
    let frame = 0;
    const paint = (): void => {
      frame = 0;
      const width = element.parentElement?.clientWidth ?? 0;
      if (!width) return;
      const tall = current.current.height(width);
      const scale = window.devicePixelRatio || 1;
      const [pixelsWide, pixelsTall] = [Math.round(width * scale), Math.round(tall * scale)];
      if (element.width !== pixelsWide || element.height !== pixelsTall) {
        element.width = pixelsWide;
        element.height = pixelsTall;
        element.style.height = `${tall}px`;
      }
      context.setTransform(scale, 0, 0, scale, 0, 0);
      context.clearRect(0, 0, width, tall);
      current.current.draw(context, width, tall);
    };
    redraw.current = () => {
      frame ||= requestAnimationFrame(paint);
    };
    const resized = new ResizeObserver(redraw.current);
    if (element.parentElement) resized.observe(element.parentElement);
    const stops = [store.listen(redraw.current), onTheme(redraw.current)];
    return () => {
      resized.disconnect();
      for (const stop of stops) stop();
      cancelAnimationFrame(frame);
    };
  }, [store]);

  useEffect(() => redraw.current(), [draw]);

  return (
    <div class="live-drawing">
      <canvas ref={canvas} role="img" aria-label={label} />
    </div>
  );
}
