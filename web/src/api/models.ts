// The models that the server has.
import { request } from "./http.ts";

export interface Model {
  id: string;
  /** "ready", "loading", "stopping", "unloaded" or "failed" */
  status: string;
}

/** The server's models. Throws ApiError. */
export async function listModels(): Promise<Model[]> {
  const response = await request("/v1/models");
  const list = (await response.json()) as { data: Model[] };
  return list.data;
}
