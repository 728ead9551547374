// What pages do beyond links and forms. Everything here is extra: without it the pages still work.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// Links that the kfp SDK prints, such as /#/runs/details/ID, lead to our pages.
function followOldLinks() {
  const match = /^#\/(runs|pipelines|experiments)\/details\/([^/?#]+)/.exec(location.hash);
  if (match) location.replace(match[1] === "experiments" ? "/experiments" : `/${match[1]}/${encodeURIComponent(match[2])}`);
}

// ---- time that runs on

function spanText(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function tick() {
  const now = Date.now() / 1000;
  for (const el of $$("[data-since]")) {
    el.textContent = (el.dataset.prefix || "") + spanText(now - Number(el.dataset.since));
  }
}

// ---- live pages: the server says that something changed, the page fetches itself and swaps its marked parts

let source = null;
let refreshing = false;
let again = false;

function listen() {
  const el = $("[data-live]");
  if (source && (!el || document.hidden)) { source.close(); source = null; }
  if (!el || document.hidden || source) return;
  source = new EventSource(el.dataset.live);
  source.addEventListener("changed", refresh);
  source.addEventListener("end", () => { source.close(); source = null; });
}

async function refresh() {
  if (refreshing) { again = true; return; }
  refreshing = true;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (answer.redirected && new URL(answer.url).pathname !== location.pathname) { location.reload(); return; }
    if (answer.ok) swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch { /* the stream reconnects and says so again */ } finally {
    refreshing = false;
    if (again) { again = false; refresh(); }
  }
}

function swap(fresh) {
  for (const part of $$("[data-swap]", fresh)) {
    const old = document.getElementById(part.id);
    if (!old || old.innerHTML === part.innerHTML) continue;
    const focused = old.contains(document.activeElement) ? document.activeElement.closest("[data-node]")?.dataset.node : null;
    old.innerHTML = part.innerHTML;
    if (focused) $(`[data-node="${CSS.escape(focused)}"]`, old)?.focus();
  }
  // A run that has ended is no longer live.
  const summary = $("#summary"), next = $("#summary", fresh);
  if (summary && next && !next.dataset.live && summary.dataset.live) {
    delete summary.dataset.live;
    if (source) { source.close(); source = null; }
  }
  applyZoom();
  tick();
  refreshPanel();
}

// ---- the graph

let zoom = null;

function applyZoom() {
  const svg = $(".stage svg.graph");
  if (!svg) return;
  const stage = svg.closest(".stage");
  const width = Number(svg.dataset.width), height = Number(svg.dataset.height);
  const fit = Math.min(1, (stage.clientWidth - 26) / width, Math.max(320, stage.clientHeight - 26) / height);
  const scale = zoom === null ? Math.max(fit, 0.35) : zoom;
  svg.setAttribute("width", width * scale);
  svg.setAttribute("height", height * scale);
  return scale;
}

function onZoom(how) {
  const scale = applyZoom() || 1;
  zoom = how === "fit" ? null : Math.min(2.5, Math.max(0.15, scale * (how === "in" ? 1.25 : 0.8)));
  applyZoom();
}

// ---- the panel

let logReader = null;

function selected() { return new URLSearchParams(location.search).get("node"); }

async function openNode(node, tab, focus) {
  const split = $("#split");
  const answer = await fetch(`${split.dataset.run}/nodes/${encodeURIComponent(node)}${tab === "log" ? "?tab=log" : ""}`);
  const text = await answer.text();
  if (!answer.ok) { say(text.trim()); return; }
  stopLog();
  $("#panel").innerHTML = text;
  split.classList.add("open");
  mark(node);
  applyZoom();
  tick();
  startLog();
  if (focus) $("#panel h2")?.focus();
  if (focus && matchMedia("(max-width: 1000px)").matches) $("#panel").scrollIntoView({ block: "start" });
}

function closePanel() {
  stopLog();
  const node = selected() || $("#panel .panel-in")?.dataset.node;
  $("#panel").replaceChildren();
  $("#split").classList.remove("open");
  mark(null);
  applyZoom();
  if (node) $(`svg [data-node="${CSS.escape(node)}"]`)?.focus();
}

function mark(node) {
  for (const el of $$("svg.graph .node")) el.classList.toggle("selected", node !== null && el.dataset.node === node);
}

// The open step changed its state: new head and details; the log goes on.
async function refreshPanel() {
  const panel = $("#panel .panel-in");
  if (!panel) return;
  const node = panel.dataset.node;
  mark(node);
  const state = $(`svg [data-node="${CSS.escape(node)}"]`)?.dataset.state;
  if (!state || state === panel.dataset.state) return;
  const answer = await fetch(panel.dataset.href);
  if (!answer.ok || $("#panel .panel-in") !== panel) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  panel.dataset.state = state;
  for (const name of ["head", "details"]) {
    const from = $(`[data-part="${name}"]`, fresh), to = $(`[data-part="${name}"]`, panel);
    if (from && to) to.innerHTML = from.innerHTML;
  }
  if (!$('[data-part="log"]', panel) && $('[data-part="log"]', fresh)) openNode(node, "details", false);
}

function showTab(tab) {
  const panel = $("#panel .panel-in");
  for (const link of $$(".tabs a", panel)) {
    if (link.dataset.tab === tab) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
  }
  const log = $('[data-part="log"]', panel);
  $('[data-part="details"]', panel).hidden = tab === "log";
  if (log) log.hidden = tab !== "log";
  if (tab === "log") startLog(); else stopLog();
}

// ---- the log

const KEEP = 400000; // characters in the page; the whole log is one link away

async function startLog() {
  const log = $('#panel [data-part="log"]');
  if (!log || log.hidden || logReader) return;
  const pre = $("pre", log), note = $(".log-state", log);
  const mine = new AbortController();
  logReader = mine;
  pre.textContent = "";
  note.textContent = "Loading …";
  try {
    const answer = await fetch(`${log.dataset.src}${"follow" in log.dataset ? "?follow=1" : ""}`, { signal: mine.signal });
    if (!answer.ok) { note.textContent = (await answer.text()).trim(); return; }
    note.textContent = "follow" in log.dataset ? "Live" : "";
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const end = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
      pre.append(value);
      if (pre.childNodes.length > 64) pre.normalize();
      if (pre.textContent.length > KEEP) pre.textContent = "…\n" + pre.textContent.slice(-KEEP / 2);
      if (end) pre.scrollTop = pre.scrollHeight;
    }
    note.textContent = pre.textContent ? "" : "The step has written nothing.";
  } catch (error) {
    if (error.name !== "AbortError") note.textContent = "The log broke off.";
  } finally {
    if (logReader === mine) logReader = null;
  }
}

function stopLog() {
  logReader?.abort();
  logReader = null;
}

// ---- small things

let toastTimer = 0;

function say(text) {
  const toast = $("#toast");
  toast.textContent = text;
  toast.classList.add("on");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => toast.classList.remove("on"), 4000);
}

function addCopyButtons() {
  if (!navigator.clipboard) return;
  for (const pre of $$("figure pre, .empty pre")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText($("code", pre).textContent);
      say("Copied");
    });
    pre.append(button);
  }
}

document.addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const zoomed = event.target.closest("[data-zoom]");
  if (zoomed) { onZoom(zoomed.dataset.zoom); return; }
  if (!$("#split")) return;
  const node = event.target.closest("svg a[data-node]");
  const tab = event.target.closest("#panel [data-tab]");
  const close = event.target.closest("#panel .close");
  if (node) {
    event.preventDefault();
    history.pushState(null, "", `?node=${encodeURIComponent(node.dataset.node)}`);
    openNode(node.dataset.node, "details", true);
  } else if (tab) {
    event.preventDefault();
    history.replaceState(null, "", tab.getAttribute("href"));
    showTab(tab.dataset.tab);
  } else if (close) {
    event.preventDefault();
    closePanel();
    history.pushState(null, "", location.pathname);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && $("#split.open") && !event.target.closest("input, select, textarea")) {
    closePanel();
    history.pushState(null, "", location.pathname);
  }
});

document.addEventListener("toggle", async (event) => {
  const details = event.target;
  if (!details.matches?.("details.preview") || !details.open || details.dataset.loaded) return;
  details.dataset.loaded = "1";
  const body = $(".preview-body", details);
  body.textContent = "Loading …";
  try {
    const answer = await fetch(details.dataset.src);
    const text = await answer.text();
    if (answer.ok) body.innerHTML = text; else body.textContent = text.trim();
  } catch { body.textContent = "The preview could not be loaded."; }
}, true);

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

document.addEventListener("change", (event) => {
  if (event.target.matches("select[data-submit]")) event.target.form.submit();
});

window.addEventListener("popstate", () => {
  if (!$("#split")) return;
  const query = new URLSearchParams(location.search);
  if (query.get("node")) openNode(query.get("node"), query.get("tab") || "details", false); else closePanel();
});

document.addEventListener("visibilitychange", listen);
window.addEventListener("resize", applyZoom);
window.addEventListener("hashchange", followOldLinks);

$("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("kfbox-theme", root.dataset.theme); } catch { /* then for this page only */ }
});

followOldLinks();
addCopyButtons();
applyZoom();
tick();
setInterval(tick, 1000);
listen();
startLog();
