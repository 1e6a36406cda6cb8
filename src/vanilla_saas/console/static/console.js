// Behaviour that every page shares: theme switch, copy buttons, menu, the area chart.
"use strict";
(() => {
  const root = document.documentElement;

  // Theme: shown at once, remembered in a cookie that the server reads, so the next page does not flash.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-themes] button");
    if (!button) return;
    event.preventDefault();
    root.dataset.theme = button.value;
    document.cookie = `vs_theme=${button.value};path=/;max-age=31536000;samesite=lax`;
    for (const other of document.querySelectorAll("[data-themes] button")) {
      other.setAttribute("aria-pressed", String(other.value === button.value));
    }
    document.dispatchEvent(new Event("themechange"));
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const field = document.getElementById(button.dataset.copy);
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      document.execCommand("copy"); // http on a local network has no clipboard API
    }
    button.lastElementChild.textContent = "Copied";
  });

  document.addEventListener("keydown", (event) => {
    const menu = document.querySelector(".menu[open]");
    if (event.key !== "Escape" || !menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });

  // A request that brought no answer at all: htmx swaps nothing then, so say it.
  document.addEventListener("htmx:error", (event) => {
    if (event.detail?.error instanceof TypeError) {
      const slot = document.getElementById("alerts");
      if (slot) slot.textContent = "The server does not answer. Nothing was sent; try again.";
    }
  });

  // A refusal stands at the field that it names, in its own words; what names none stays where it was put.
  document.addEventListener("htmx:after:swap", (event) => {
    const { sourceElement, target } = event.detail?.ctx ?? {};
    const form = sourceElement?.closest?.("form");
    if (!form || !(target instanceof Element)) return;
    for (const told of form.querySelectorAll(".problem")) {
      const control = told.previousElementSibling;
      control.removeAttribute("aria-invalid");
      if (control.dataset.hints) control.setAttribute("aria-describedby", control.dataset.hints);
      else control.removeAttribute("aria-describedby");
      told.remove();
    }
    const named = [...target.querySelectorAll(".alert.bad [data-field]")];
    const found = named.map((words) => [words, controlOf(form, words.dataset.field)]);
    if (!found.length || found.some(([, control]) => !control)) return;
    for (const [words, control] of found) say(control, words);
    target.replaceChildren();
    found[0][1].focus();
  });

  function controlOf(form, name) {
    const parts = name.split(".");
    const shown = [...form.elements].filter((one) => one.name && one.type !== "hidden");
    for (const wanted of [name, `field.${parts.at(-1)}`, parts[0]]) {
      const control = shown.find((one) => one.name === wanted || one.dataset.says?.split(" ").includes(wanted));
      if (control) return control;
    }
  }

  function say(control, words) {
    for (let box = control.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    const [first, ...within] = words.dataset.field.split(".");
    const part = control.name === first && within.length ? `${within.join(".")}: ` : "";
    const text = [...(words.children.length ? words.children : [words])].map((line) => line.textContent.trim()).join(" ");
    const before = control.nextElementSibling;
    if (before?.classList.contains("problem")) {
      before.textContent += ` ${part}${text}`;
      return;
    }
    const told = document.createElement("p");
    told.className = "problem";
    told.id = `${control.id || control.name}-problem`;
    told.textContent = part + text;
    control.after(told);
    const hints = control.getAttribute("aria-describedby");
    if (hints) control.dataset.hints = hints;
    control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-describedby", hints ? `${hints} ${told.id}` : told.id);
  }

  // <div data-chart data-days="[epoch seconds]" data-values="[tokens]" data-unit="tokens">
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
  const whole = new Intl.NumberFormat("en");
  const dayName = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });

  function colour(name) {
    // canvas knows no custom properties: let a hidden element resolve them
    const probe = document.createElement("span");
    probe.className = `probe ${name}`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  }

  function draw(box) {
    const days = JSON.parse(box.dataset.days);
    const values = JSON.parse(box.dataset.values);
    const unit = box.dataset.unit ?? "tokens";
    const readout = document.getElementById(box.dataset.readout);
    const rest = readout?.textContent;
    const line = colour("c-line");
    const axis = { stroke: colour("c-dim"), font: "12px system-ui, sans-serif", ticks: { show: false } };
    const top = Math.max(...values, 1);
    const options = {
      width: box.clientWidth,
      height: box.clientHeight,
      padding: [10, 6, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 8, fill: line } },
      scales: { x: { time: false }, y: { range: [0, top * 1.15] } },
      axes: [
        { ...axis, grid: { show: false }, size: 30, space: 70, values: (_, ticks) => ticks.map((i) => (Number.isInteger(i) && days[i] ? dayName.format(days[i] * 1000) : "")) },
        { ...axis, grid: { stroke: colour("c-grid"), width: 1 }, size: 52, space: 44, values: (_, ticks) => ticks.map((v) => compact.format(v)) },
      ],
      series: [
        {},
        {
          stroke: line,
          width: 2,
          fill: (u) => {
            const fade = u.ctx.createLinearGradient(0, u.bbox.top, 0, u.bbox.top + u.bbox.height);
            fade.addColorStop(0, line.replace("rgb(", "rgba(").replace(")", ", .28)"));
            fade.addColorStop(1, line.replace("rgb(", "rgba(").replace(")", ", .02)"));
            return fade;
          },
          points: { show: false },
          paths: uPlot.paths.spline(),
        },
      ],
      hooks: {
        setCursor: [(u) => {
          const i = u.cursor.idx;
          if (readout) readout.textContent = i == null ? rest : `${dayName.format(days[i] * 1000)}: ${whole.format(values[i])} ${unit}`;
        }],
      },
    };
    return new uPlot(options, [days.map((_, i) => i), values], box);
  }

  function charts() {
    for (const box of document.querySelectorAll("[data-chart]")) {
      let plot = draw(box);
      new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: box.clientHeight })).observe(box);
      const redraw = () => { plot.destroy(); plot = draw(box); };
      document.addEventListener("themechange", redraw);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    }
  }
  if (document.querySelector("[data-chart]")) charts();
})();
