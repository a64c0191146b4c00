// Shows what /status says, again and again. Whatever comes from there is put in as text, never as markup.
"use strict";

const INTERVAL = 2000;
const PATIENCE = 8000;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const rows = new Map();
let overview = null;

function span(seconds) {
  const s = Math.max(0, seconds);
  if (s < 100) return `${Math.floor(s)} s`;
  if (s < 6000) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) {
    bytes /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? bytes : bytes.toFixed(1)} ${units[unit]}`;
}

const secondsSince = (time) => (Date.parse(overview.time) - Date.parse(time)) / 1000;

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function plot(svg, durations) {
  const key = durations.join();
  if (svg.dataset.key === key) return;
  svg.dataset.key = key;
  const most = Math.max(...durations, 0.001);
  const bar = (duration, at) =>
    `M${(30 - durations.length + at) * 4 + 2} 22v${-Math.max(1, (duration / most) * 22).toFixed(1)}`;
  const bars = document.createElementNS(SVG, "path");
  bars.setAttribute("d", durations.map(bar).join(""));
  svg.replaceChildren(bars);
  const last = durations.length ? `${durations.at(-1).toFixed(1)} s, at most ${most.toFixed(1)} s` : "none yet";
  svg.setAttribute("aria-label", last);
  const title = document.createElementNS(SVG, "title");
  title.textContent = last;
  svg.append(title);
}

function newRow() {
  const row = document.createElement("tr");
  const cell = (kind) => {
    const td = row.insertCell();
    td.className = kind;
    return td;
  };
  const cells = { name: cell("name"), state: cell("state"), last: cell(""), lag: cell("number") };
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("width", 120);
  svg.setAttribute("height", 22);
  svg.setAttribute("role", "img");
  cell("plot").append(svg);
  Object.assign(cells, { rows: cell("number"), bytes: cell("number"), backlog: cell("number") });
  const error = document.createElement("tr");
  error.className = "error";
  const message = error.insertCell();
  message.colSpan = 8;
  return { row, error, message, svg, ...cells };
}

// The error of the last snapshot, or one that has come after it.
function presentError(server) {
  const { last_error: error, last_snapshot: last } = server;
  return error && !(last && Date.parse(last.time) > Date.parse(error.time)) ? error : null;
}

function fill(shown, server) {
  const last = server.last_snapshot;
  shown.row.classList.toggle("ill", !server.well);
  set(shown.name, server.name);
  shown.name.title = `${server.server}, id ${server.srvid}, every ${server.frequency} s`;
  set(shown.state, server.borrowed ? `${server.state}, without PoWA` : server.state);
  shown.state.title = [server.borrowed, ...server.skipped].filter(Boolean).join("\n");
  const took = last && last.fetch_seconds + last.wait_seconds + last.store_seconds;
  set(shown.last, last ? `${span(secondsSince(last.time))} ago, took ${took.toFixed(1)} s` : "–");
  set(shown.lag, server.lag_seconds >= 1 ? span(server.lag_seconds) : "–");
  plot(shown.svg, server.recent_seconds);
  set(shown.rows, last ? last.rows.toLocaleString("en") : "–");
  set(shown.bytes, last ? size(last.bytes) : "–");
  const waiting = server.backlog;
  set(shown.backlog, waiting.snapshots ? `${waiting.snapshots} (${size(waiting.bytes)})` : "–");
  const error = presentError(server);
  set(shown.message, error ? `${span(secondsSince(error.time))} ago: ${error.message}` : "");
  shown.error.hidden = !error;
}

function showFleet() {
  const wanted = byId("search").value.trim().toLowerCase();
  const has = (server) =>
    [server.name, server.server, server.state, presentError(server)?.message ?? ""]
      .some((text) => text.toLowerCase().includes(wanted));
  const servers = overview.servers.filter(has);
  servers.sort((a, b) => a.well - b.well || a.name.localeCompare(b.name, "en", { numeric: true }) || a.srvid - b.srvid);
  const known = new Set(overview.servers.map((server) => server.srvid));
  for (const id of rows.keys()) if (!known.has(id)) rows.delete(id);
  const order = [];
  for (const server of servers) {
    if (!rows.has(server.srvid)) rows.set(server.srvid, newRow());
    const shown = rows.get(server.srvid);
    fill(shown, server);
    order.push(shown.row, shown.error);
  }
  const fleet = byId("fleet");
  if (order.length !== fleet.children.length || order.some((row, at) => fleet.children[at] !== row)) {
    fleet.replaceChildren(...order);
  }
  const nothing = overview.servers.length ? "No server is like that." : "No server is to be collected: powa_servers lists none.";
  set(byId("nothing"), nothing);
  byId("nothing").hidden = servers.length > 0;
}

function alarm(text) {
  set(byId("alarm"), text ?? "");
  byId("alarm").hidden = !text;
}

function figure(id, text, isBad) {
  set(byId(id), text);
  byId(id).classList.toggle("bad", isBad);
}

function show() {
  const { servers } = overview;
  const ill = servers.filter((server) => !server.well).length;
  const lag = servers.reduce((most, server) => Math.max(most, server.lag_seconds), 0);
  const bytes = servers.reduce((sum, server) => sum + server.backlog.bytes, 0);
  const waiting = servers.reduce((sum, server) => sum + server.backlog.snapshots, 0);
  set(byId("version"), overview.version);
  set(byId("repository"), `repository ${overview.repository}`);
  document.title = ill ? `(${ill}) powa-collector` : "powa-collector";
  figure("servers", String(servers.length), false);
  figure("problems", String(ill), ill > 0);
  figure("lag", lag >= 1 ? span(lag) : "–", servers.some((server) => server.lag_seconds > server.frequency));
  figure("backlog", waiting ? `${waiting} (${size(bytes)})` : "–", waiting > 0);
  set(byId("time"), `as of ${overview.time.replace("T", " ").replace(/\..*/, "")} UTC`);
  const wrong = [
    overview.stopping && "The collector is stopping.",
    !overview.listening && "The collector waits for the repository.",
    overview.problem && `The last reload failed: ${overview.problem}`,
    !overview.spool.usable && "Snapshots could not wait on disk if the repository were away: see the log.",
  ];
  alarm(wrong.filter(Boolean).join(" "));
  showFleet();
}

async function look() {
  if (!document.hidden) {
    try {
      const response = await fetch("status", { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
      if (!response.ok) throw new Error((await response.text()).trim() || response.statusText);
      overview = await response.json();
      show();
    } catch (error) {
      const since = overview ? ` What is shown is as of ${overview.time}.` : "";
      alarm(`The collector does not answer: ${error.message}.${since}`);
    }
  }
  setTimeout(look, INTERVAL);
}

byId("search").addEventListener("input", () => overview && showFleet());
look();
