// Pages that server-sent events keep up: <div data-events="/…/events"> is told of each, and htmx asks for it again.
"use strict";
(() => {
  const LATER_MS = 3000;
  let source, timer;

  const place = () => document.querySelector("[data-events]");
  const look = () => place()?.dispatchEvent(new Event("told"));

  function close() {
    source?.close();
    clearTimeout(timer);
    source = undefined;
  }

  function open() {
    const here = place();
    if (!here || source || document.hidden) return;
    source = new EventSource(here.dataset.events);
    source.addEventListener("progress", look);
    source.addEventListener("end", () => { close(); look(); });
    source.addEventListener("error", (event) => {
      // it comes back by itself, unless the server said no: then the page looks now and then
      if (event.data === undefined && source?.readyState !== EventSource.CLOSED) return;
      close();
      look();
      timer = setTimeout(open, LATER_MS);
    });
  }

  // a browser has few connections to a server: none is for a page that nobody sees
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
})();
