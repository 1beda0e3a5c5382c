// The explorer of words: a test or a word is the question, sentences are ticked; the server orders and searches them.
"use strict";
import { ask, button, get, made, many, plainly, progressOf, save, signed } from "./talk.js";

const chosen = new Set(), NOUN = "sentence";
let data, answer = null, by = "score", falling = true, at = 0, latest = 0, listed = 0, shownState = "", timer = 0;
const KINDS = { target: "one group", other: "the other group", attribute: "near the first", counter: "near the second", first: "its cluster", second: "the next cluster" };

const question = () => ({ kind: answer.kind, name: answer.name });
const named = one => one.kind === "test" ? `test ${one.query}` : `word ${one.query}`;

async function choose(asked) {
  get("said").textContent = "Working…";
  const found = await plainly(() => ask("answer", asked));
  if (!found) { if (answer) describe(); else get("said").textContent = ""; return; }
  answer = found; at = 0;
  if (answer.kind === "test") get("test").value = answer.name; else get("word").value = answer.name;
  describe();
  history.replaceState(null, "", `#${answer.kind}=${encodeURIComponent(answer.name)}`);
  await show(); await predict();
}

function describe() {
  const what = answer.kind === "test" ? `Test ${answer.name}` : `The word ${answer.name}`;
  get("said").textContent = `${what}: ${answer.value.toFixed(3)}, ${answer.said}.`;
  const kinds = Object.keys(answer.marked).map(kind => made("mark", answer.kind === "word" && kind === "target" ? "the word" : KINDS[kind], kind));
  get("legend").replaceChildren("Marked: ", ...kinds.flatMap(mark => [mark, " "]));
}

function markedText(text) {
  const kinds = new Map(Object.entries(answer.marked).flatMap(([kind, words]) => words.map(word => [word.toLowerCase(), kind])));
  const cell = made("span", "");
  for (const part of text.split(/([\p{L}\p{M}\p{N}]+)/u)) {
    const kind = kinds.get(part.toLowerCase());
    cell.append(kind ? made("mark", part, kind) : part);
  }
  return cell;
}

const filter = () => ({ find: get("find").value, sign: Number(get("sign").value), only: get("only").checked, chosen: get("only").checked ? [...chosen] : [] });

async function show() {
  const count = ++listed;
  const found = await plainly(() => ask("listed", { ...question(), ...filter(), by, falling, page: at }));
  if (!found || count !== listed) return;
  at = found.page;
  get("rows").tBodies[0].replaceChildren(...found.rows.map(line));
  get("count").textContent = `${many(found.count, NOUN)} found`;
  get("page").textContent = `page ${at + 1} of ${found.pages}`;
  get("back").disabled = at === 0; get("next").disabled = at >= found.pages - 1;
}

function line(one) {
  const row = made("tr"), box = made("input");
  box.type = "checkbox"; box.checked = chosen.has(one.row); box.setAttribute("aria-label", `Tick ${NOUN} ${one.id}`);
  box.onchange = () => {
    if (box.checked) chosen.add(one.row); else chosen.delete(one.row);
    row.classList.toggle("chosen", box.checked); predict();
  };
  const cells = [made("td"), made("td", one.id, "id"), made("td", signed(one.score), "n"), made("td")];
  cells[0].append(box); cells[3].append(markedText(one.text)); cells[3].dir = "auto";
  row.append(...cells); row.classList.toggle("chosen", box.checked);
  return row;
}

async function predict() {
  const count = ++latest, rows = [...chosen];
  get("chosen").hidden = rows.length === 0;
  if (!rows.length) return;
  get("chosen-count").textContent = `${many(rows.length, NOUN)} ticked.`;
  const body = { ...question(), chosen: rows }, sum = await plainly(() => ask("predict", body));
  if (count !== latest) return;
  if (!sum) { get("predicted").textContent = get("error").textContent; return; }
  const said = `Without them the value would change by ${signed(sum.sum)} by the sum of scores`;
  get("predicted").textContent = `${said}…`;
  await new Promise(done => setTimeout(done, 300));
  if (count !== latest) return;
  const step = await plainly(() => ask("predict", { ...body, newton: true }));
  if (count !== latest || !step) return;
  get("predicted").textContent = step.newton === null ? `${said}; a Newton step is not to be had: ${step.said}`
    : `${said}, ${signed(step.newton)} by one Newton step, to ${(answer.value + step.newton).toFixed(3)}.`;
}

async function act(action) {
  const body = { ...question(), chosen: [...chosen], action };
  if (action !== "remove") Object.assign(body, { steps: Number(get("steps").value), rate: Number(get("rate").value) });
  const begun = await plainly(() => ask("act", body));
  if (begun && begun.entry) get("error").textContent = "That was tried already: see the list below.";
  if (begun) await look();
}

const VERBS = { remove: "trained again without", undo: "undone:", amplify: "amplified:" };
const what = one => `${VERBS[one.action]} ${many(one.ids.length, NOUN)}: ${one.ids.slice(0, 6).join(", ")}${one.ids.length > 6 ? ", …" : ""}`;

async function look() {
  clearTimeout(timer);
  const state = await plainly(() => ask("state"));
  const live = state ? state.jobs.filter(job => ["waiting", "running", "failed"].includes(job.state)) : [];
  const text = state ? JSON.stringify(state) : shownState;
  if (text !== shownState) { shownState = text; showState(state, live); }
  timer = setTimeout(look, live.some(job => job.state !== "failed") ? 500 : state ? 3000 : 10000);
}

function showState(state, live) {
  get("jobs").replaceChildren(...live.map(job => {
    const item = made("li", `${named(job.about)}, ${what(job.about)} `);
    if (job.state === "failed") { item.append(made("span", `failed: ${job.said}`, "error")); return item; }
    item.append(...progressOf(job), button("Stop", undefined, () => plainly(() => ask("stop", { job: job.number })).then(look)));
    return item;
  }));
  const table = get("list");
  table.tBodies[0].replaceChildren(...state.tried.map(one => {
    const row = made("tr"), again = made("td"), done = made("td", `${what(one)}${one.said ? `. ${one.said}` : ""}`);
    again.append(button("Show", "Show this question with these sentences ticked", async () => {
      chosen.clear(); for (const place of one.rows) chosen.add(place);
      await choose({ kind: one.kind, name: one.query });
    }));
    row.append(made("td", `${named(one)}: ${one.margin.toFixed(3)}`), done, made("td", signed(one.predicted), "n"),
      made("td", signed(one.newton), "n"), made("td", signed(one.achieved), "n"), again);
    return row;
  }));
  table.parentElement.hidden = get("share").hidden = state.tried.length === 0;
  get("none").hidden = state.tried.length > 0 || live.length > 0;
}

function listen() {
  get("ask").onsubmit = event => { event.preventDefault(); choose({ kind: "word", name: get("word").value }); };
  get("test").onchange = () => { if (get("test").value) choose({ kind: "test", name: get("test").value }); };
  get("filter").onsubmit = event => event.preventDefault();
  for (const name of ["find", "sign", "only"]) get(name).oninput = () => { at = 0; show(); };
  get("strongest").onsubmit = async event => {
    event.preventDefault();
    const found = await plainly(() => ask("strongest", { ...question(), sign: Number(get("which").value), many: Number(get("many").value) }));
    if (found) for (const row of found.rows) chosen.add(row);
    show(); predict();
  };
  for (const head of get("rows").querySelectorAll("th button")) head.onclick = () => {
    falling = by === head.dataset.by ? !falling : head.dataset.by === "score"; by = head.dataset.by; at = 0;
    for (const other of get("rows").querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.parentElement.setAttribute("aria-sort", falling ? "descending" : "ascending"); show();
  };
  get("back").onclick = () => { at -= 1; show(); };
  get("next").onclick = () => { at += 1; show(); };
  get("retrain").onclick = () => act("remove");
  for (const one of document.querySelectorAll("[data-act]")) one.onclick = () => act(one.dataset.act);
  for (const one of document.querySelectorAll("[data-export]")) {
    one.onclick = () => save(one.dataset.export, { ...question(), chosen: [...chosen], which: one.dataset.export });
  }
  get("clear").onclick = () => { chosen.clear(); show(); predict(); };
}

async function begin() {
  data = await ask("result");
  document.title = `Explore ${data.title}`;
  get("title").textContent = data.title;
  get("verdict").textContent = `When it was made: ${data.verdict}`; get("verdict").classList.add(data.level);
  get("size").textContent = `${many(data.n, NOUN)}, ${many(data.words, "word")} with vectors.`;
  get("command").textContent = data.command; get("about").hidden = false;
  get("steps").value = data.steps; get("rate").value = data.rate;
  get("test").append(new Option(data.tests.length ? "choose" : "none", ""), ...data.tests.map(name => new Option(name, name)));
  get("test").disabled = data.tests.length === 0;
  listen();
  const [kind, name] = location.hash.slice(1).split("=");
  await choose(name ? { kind, name: decodeURIComponent(name) } : data.first);
  if (!answer) await choose(data.first);
  await look();
}

begin().catch(error => { get("title").textContent = "The result cannot be shown"; get("error").textContent = error.message; });
