// Talks to the desk: requests, and the news that it has for this page.

export const page = (() => {
  let name = location.hash.slice(1);
  if (!/^[a-z0-9]{8,32}$/.test(name)) {
    name = fresh();
    history.replaceState(null, "", `#${name}`);
  }
  return name;
})();

export function fresh() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function answered(response) {
  const type = response.headers.get("content-type") || "";
  const told = type.includes("json") ? await response.json() : { error: await response.text() };
  if (!response.ok) throw new Error(told.error || `the desk answered ${response.status}`);
  return told;
}

export async function ask(path) {
  return answered(await fetch(path, { cache: "no-store" }));
}

export async function tell(path, told) {
  const headers = { "content-type": "application/json" };
  return answered(await fetch(path, { method: "POST", headers, body: JSON.stringify({ page, ...told }) }));
}

export async function send(path, file) {
  return answered(await fetch(path, { method: "POST", body: file }));
}

// Calls `heard` with each event, in order, for ever, and `lost` when the desk is gone or back. A hidden page asks for
// nothing: browsers allow few requests at once.
export async function listen(heard, lost) {
  let after = 0;
  let since = null;
  for (;;) {
    if (document.hidden) await new Promise((go) => document.addEventListener("visibilitychange", go, { once: true }));
    try {
      const { events, started } = await ask(`/api/events?page=${page}&after=${after}`);
      const again = since !== null && since !== started;
      since = started;
      lost(false, again);
      if (again) {
        after = 0;
        continue;
      }
      for (const event of events) {
        after = event.number;
        heard(event);
      }
    } catch {
      lost(true, false);
      await new Promise((go) => setTimeout(go, 1000));
    }
  }
}
