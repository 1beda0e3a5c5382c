// The explorer of words: a test or a word is the question, sentences are ticked; the server orders and searches them.
"use strict";
import { acting, listenToHeads, order } from "./acts.js";
import { ask, get, made, many, plainly, signed } from "./talk.js";

const chosen = new Set(), NOUN = "sentence";
let data, answer = null, at = 0, asks = 0, listed = 0;
const KINDS = { target: "one group", other: "the other group", attribute: "near the first", counter: "near the second", first: "its cluster", second: "the next cluster" };

const question = () => ({ kind: answer.kind, name: answer.name });
const named = one => one.kind === "test" ? `test ${one.query}` : `word ${one.query}`;
const { predict, look, listen: listenToActs } = acting({
  noun: () => NOUN, ticked: NOUN, question, value: "value", unit: "", now: () => answer.value, pause: 300, named,
  tried: (one, cell) => {
    if (one.said) cell.append(`. ${one.said}`);
    return { asked: `${named(one)}: ${one.margin.toFixed(3)}`, show: async () => {
      chosen.clear(); for (const place of one.rows) chosen.add(place);
      await choose({ kind: one.kind, name: one.query });
    } };
  },
  unticked: () => show(),
}, chosen);

async function choose(asked) {
  get("said").textContent = "Working…";
  const count = ++asks, found = await plainly(() => ask("answer", asked));
  if (count !== asks) return; // of two questions asked quickly the later is shown
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
  const found = await plainly(() => ask("listed", { ...question(), ...filter(), ...order, page: at }));
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
  listenToHeads(() => { at = 0; show(); });
  listenToActs();
  get("back").onclick = () => { at -= 1; show(); };
  get("next").onclick = () => { at += 1; show(); };
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
