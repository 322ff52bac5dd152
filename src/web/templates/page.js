// The page is whole without this file; it keeps it current: filters in place, relative times, rows as they change.
"use strict";

const page = document.body.dataset.page;
const list = document.getElementById("machines");
const lamps = document.getElementById("lamps");
let stage = new URLSearchParams(location.search).get("stage") || "";

function words(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

// The server's clock is the one that counts; a browser's may be off by minutes.
let skew = 0;
function relate(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-plain])")) {
    const seconds = Math.round((Date.now() + skew - Date.parse(time.dateTime)) / 1000);
    const ahead = time.parentElement.classList.contains("next");
    const text = ahead
      ? (seconds >= 0 ? "now" : `in ${words(-seconds)}`)
      : (seconds < 5 ? "just now" : `${words(seconds)} ago`);
    if (time.textContent !== text) time.textContent = text;
    if (!time.title) time.title = time.dateTime;
  }
}

function fragment(html) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.firstElementChild;
}

function matches(row) {
  const find = document.getElementById("find").value.trim().toLowerCase();
  return (!stage || row.dataset.stage === stage) && (!find || row.dataset.text.includes(find));
}

function filter() {
  let any = false;
  for (const row of list.children) {
    row.hidden = !matches(row);
    any = any || !row.hidden;
  }
  for (const chip of document.querySelectorAll("[data-filter]")) {
    if (chip.dataset.filter === stage) chip.setAttribute("aria-current", "true");
    else chip.removeAttribute("aria-current");
  }
  document.getElementById("none").hidden = any;
}

function lamp(row) {
  let light = lamps.querySelector(`[data-for="${row.dataset.id}"]`);
  if (!light) {
    light = document.createElement("a");
    light.href = `#${row.id}`;
    light.tabIndex = -1;
    light.dataset.for = row.dataset.id;
    lamps.insertBefore(light, [...lamps.children].find((other) => other.dataset.for > row.dataset.id) || null);
  }
  light.dataset.stage = row.dataset.stage;
  light.title = `${row.querySelector(".id").textContent} · ${row.querySelector(".pill").textContent}`;
}

function show(id, html) {
  const row = fragment(html);
  const old = document.getElementById(`m-${id}`);
  row.hidden = !matches(row);
  if (old) {
    const within = old.contains(document.activeElement) ? document.activeElement.closest("summary, a") : null;
    if (old.querySelector("details[open]")) row.querySelector("details")?.setAttribute("open", "");
    if (old.dataset.stage !== row.dataset.stage) {
      row.classList.add("fresh");
      if (row.dataset.stage === "stuck") {
        document.getElementById("announcer").textContent =
          `${row.querySelector(".id").textContent} is stuck: ${row.querySelector(".verdict").textContent}`;
      }
    }
    old.replaceWith(row);
    if (within) row.querySelector(within.matches("summary") ? "summary" : ".id")?.focus();
  } else {
    list.insertBefore(row, [...list.children].find((other) => other.dataset.id > id) || null);
    row.classList.add("fresh");
  }
  relate(row);
  lamp(row);
}

function stale(yes) {
  let sign = document.querySelector(".stale");
  if (yes && !sign) {
    sign = document.createElement("p");
    sign.className = "stale";
    sign.setAttribute("role", "status");
    sign.textContent = "Not live: the box does not answer. Trying again…";
    document.body.append(sign);
  } else if (!yes && sign) sign.remove();
}

async function refresh() {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  document.querySelector("main").replaceWith(fresh.querySelector("main"));
  relate(document);
}

let seen = document.body.dataset.seen;
function listen() {
  const events = new EventSource(`/events?seen=${encodeURIComponent(seen)}`);
  let doubt;
  events.onopen = () => { clearTimeout(doubt); stale(false); };
  events.onerror = () => {
    clearTimeout(doubt);
    doubt = setTimeout(() => stale(true), 4000);
    // The browser does not come back by itself from an answer such as "too many listeners".
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 10000);
  };
  events.addEventListener("summary", (event) => {
    const { now, html, chips } = JSON.parse(event.data);
    seen = event.lastEventId || seen;
    skew = now - Date.now();
    document.getElementById("summary").innerHTML = html;
    relate(document.getElementById("summary"));
    if (page === "rack") {
      document.getElementById("chips").innerHTML = chips;
      filter();
    }
  });
  events.addEventListener("machine", (event) => {
    const { id, html } = JSON.parse(event.data);
    if (page === "rack") show(id, html);
    else if (id === document.body.dataset.id) refresh().catch(() => stale(true));
  });
  events.addEventListener("gone", (event) => {
    document.getElementById(`m-${event.data}`)?.remove();
    lamps?.querySelector(`[data-for="${event.data}"]`)?.remove();
  });
  addEventListener("pagehide", () => events.close(), { once: true });
}

if (page === "rack") {
  document.getElementById("chips").addEventListener("click", (event) => {
    const chip = event.target.closest("[data-filter]");
    if (!chip || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    stage = chip.dataset.filter;
    const url = new URL(location);
    if (stage) url.searchParams.set("stage", stage); else url.searchParams.delete("stage");
    history.replaceState(null, "", url);
    filter();
  });
  document.getElementById("find").addEventListener("input", filter);
  document.querySelector(".find").addEventListener("submit", (event) => event.preventDefault());
}
if (page !== "missing") {
  setInterval(() => relate(document), 5000);
  listen();
}
