// The three requests this page makes. Records travel in bodies, never in addresses, and no answer is kept.

/** A refusal or a failure: `message`, `detail` (places), `code`, `requestId`, and after how many seconds to try again. */
export class ServiceError extends Error {
  constructor(message, { code = "", detail = [], requestId = "", retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { code, detail, requestId, retryAfter });
  }
}

let key = null; // of this page alone: neither stored nor part of any address

/** The API key to send from now on, where the service has keys. */
export function useKey(text) {
  key = text;
}

const OPTIONS = { cache: "no-store", referrerPolicy: "no-referrer", redirect: "error" };

/** What a GET answers. */
export const get = (path) => ask(path, {});

/** The answer to one record. `explain`: true, or "features". */
export async function predict(record, explain, signal) {
  const body = JSON.stringify({ instances: [record], explain });
  const answer = await ask("predict", { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
  const [prediction] = answer.predictions;
  if (prediction.status !== "error") return { prediction, requestId: answer.request_id };
  const { code, message, detail } = prediction.error;
  throw new ServiceError(message, { code, detail, requestId: answer.request_id });
}

async function ask(path, options) {
  let response;
  try {
    const headers = { ...options.headers, ...(key === null ? {} : { Authorization: `Bearer ${key}` }) };
    response = await fetch(path, { ...OPTIONS, ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service cannot be reached.");
  }
  const document = await response.json().catch(() => null);
  if (response.ok && document !== null) return document;
  throw refusal(response, document);
}

function refusal(response, document) {
  const seconds = Number(response.headers.get("Retry-After"));
  const retryAfter = response.headers.has("Retry-After") && Number.isFinite(seconds) ? seconds : null;
  if (document === null || typeof document.error !== "string") {
    return new ServiceError(`The service answered with status ${response.status}.`, { retryAfter });
  }
  return new ServiceError(document.error, { code: document.code, detail: document.detail, requestId: document.request_id, retryAfter });
}
