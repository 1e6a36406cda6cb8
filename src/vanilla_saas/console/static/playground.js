// The playground: sends the form, reads server-sent events from the answer's body, writes text as it comes.
const form = document.getElementById("talk");
const answer = document.getElementById("answer");
const refusal = document.getElementById("refusal");
const receipt = document.getElementById("receipt");
const state = document.getElementById("state");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const balance = document.getElementById("balance");
const whole = new Intl.NumberFormat("en");
let running = null;

/** Yields [event, data] for each event of a text/event-stream body, however the network cut it. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      let name = "message";
      const data = [];
      for (const line of block.split(/\r?\n/)) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      }
      if (data.length) yield [name, JSON.parse(data.join("\n"))];
    }
  }
}

function refuse(problem) {
  const box = document.createElement("div");
  box.className = "alert bad";
  box.setAttribute("role", "alert");
  const inner = document.createElement("div");
  const line = document.createElement("p");
  line.textContent = problem.detail[0].toUpperCase() + problem.detail.slice(1);
  if (problem.needed !== undefined && problem.available !== undefined) {
    line.textContent += `: ${whole.format(problem.needed)} needed, ${whole.format(problem.available)} available`;
  }
  if (problem.retry_after_s) line.textContent += `. Try again in ${problem.retry_after_s} seconds`;
  inner.append(line);
  if (problem.hint) {
    const hint = document.createElement("p");
    hint.className = "dim";
    hint.textContent = problem.hint;
    inner.append(hint);
  }
  box.append(inner);
  refusal.replaceChildren(box);
}

function show(name, value) {
  document.getElementById(`r-${name}`).textContent = value;
}

const handlers = {
  reserved({ tokens }) {
    state.textContent = "answering";
    for (const field of receipt.querySelectorAll("dd")) field.textContent = "";
    show("reserved", whole.format(tokens));
    receipt.hidden = false;
  },
  delta({ text }) {
    answer.append(text);
  },
  settled(data) {
    for (const name of ["charged_tokens", "available_tokens", "input_tokens", "output_tokens"]) {
      if (data[name] != null) show(name, whole.format(data[name]));
    }
    if (data.latency_ms != null) show("latency_ms", `${whole.format(data.latency_ms)} ms`);
    if (balance && data.available_tokens != null) balance.textContent = whole.format(data.available_tokens);
    state.textContent = data.status;
  },
  refused(problem) {
    state.textContent = "refused";
    refuse(problem);
  },
};

async function talk() {
  running = new AbortController();
  answer.replaceChildren();
  refusal.replaceChildren();
  receipt.hidden = true;
  state.textContent = "reserving";
  answer.setAttribute("aria-busy", "true");
  send.disabled = true;
  stop.hidden = false;
  let ended = false;
  try {
    const response = await fetch(form.action, {
      method: "POST",
      body: new URLSearchParams(new FormData(form)),
      headers: { accept: "text/event-stream, application/problem+json" },
      signal: running.signal,
    });
    const type = response.headers.get("content-type") ?? "";
    if (response.redirected || type.startsWith("text/html")) {
      location.assign("/sign-in?next=/playground");
      return;
    }
    if (!type.startsWith("text/event-stream")) {
      handlers.refused(await response.json());
      return;
    }
    for await (const [name, data] of events(response.body)) {
      handlers[name]?.(data);
      ended = ended || name === "settled" || name === "refused";
    }
    if (!ended) handlers.refused({ detail: "The answer broke off. Your wallet shows what was charged." });
  } catch (error) {
    if (error.name === "AbortError") state.textContent = "stopped; what was generated is charged";
    else handlers.refused({ detail: "The server does not answer. Your wallet shows whether anything was charged." });
  } finally {
    answer.removeAttribute("aria-busy");
    send.disabled = false;
    stop.hidden = true;
    running = null;
    form.dispatchEvent(new Event("change")); // the next quote is from what is left now
  }
}

// in the capture phase, before htmx sees the submit: the form's own request is the estimate
form.addEventListener("submit", (event) => {
  event.preventDefault();
  event.stopPropagation();
  if (!running) talk();
}, true);
stop.addEventListener("click", () => running?.abort());
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
