// The explorer's page: asks the server it came from, and nobody else. Whatever the data holds is put in as text.
"use strict";
import { acting, listenToHeads, order as sorted } from "./acts.js";
import { Map2D, colourOf } from "./map.js";
import { ask, button, get, made, many, plainly, signed } from "./talk.js";

const MANY = 25, STRONG = 20;
const chosen = new Set();
let data, map, answer = null, at = 0, asks = 0, listed = 0;

const question = () => ({ row: answer.row, first: answer.first, second: answer.second });
const named = one => `${data.noun} ${one.query}`;
const { predict, look, listen: listenToActs } = acting({
  noun: () => data.noun, ticked: "sample", question, value: "margin", unit: " nats", now: () => answer.margin, pause: 200, named,
  tried: (one, cell) => {
    const rows = one.ids.map(label => data.rows.get(label)).filter(place => place !== undefined), asked = data.rows.get(one.query);
    if (one.said) cell.title = one.said;
    const show = asked === undefined ? null : async () => {
      chosen.clear(); for (const place of rows) chosen.add(place);
      await choose({ row: asked, first: one.first, second: one.second });
    };
    return { asked: `${named(one)}: cluster ${one.first}, not ${one.second}; margin ${one.margin.toFixed(3)}`, show };
  },
  unticked: () => { drawMap(); show(); },
}, chosen);

function shownRow(one, label) {
  if (one.cells.length) {
    const picture = made("canvas", undefined, "picture"), height = one.cells.length, width = one.cells[0].length;
    picture.width = width; picture.height = height;
    picture.setAttribute("role", "img"); picture.setAttribute("aria-label", label);
    const pen = picture.getContext("2d"), dots = pen.createImageData(width, height);
    one.cells.flat().forEach((grey, place) => dots.data.set([grey, grey, grey, 255], 4 * place));
    pen.putImageData(dots, 0, 0);
    return picture;
  }
  const list = made("dl");
  for (const [name, value] of one.features) list.append(made("dt", name), made("dd", value));
  return list;
}

async function choose(asked) {
  const count = ++asks, found = await plainly(() => ask("answer", asked));
  if (!found || count !== asks) return; // of two questions asked quickly the later is shown
  answer = found; at = 0;
  get("ask-id").value = data.ids[answer.row];
  get("first").value = answer.first; get("second").value = answer.second;
  const share = cluster => `${Math.round(100 * answer.probability[cluster])} %`;
  get("said").textContent = `The clustering gives ${data.noun} ${data.ids[answer.row]} ${share(answer.first)} to cluster ${answer.first} and `
    + `${share(answer.second)} to cluster ${answer.second}: a margin of ${answer.margin.toFixed(3)} nats, the logarithm of how many times `
    + `the first is the second. Its own presence did ${signed(answer.scores[answer.row])} nats.`;
  const rows = await plainly(() => ask("rows", { rows: [answer.row], beside: answer.row }));
  if (rows) get("shown").replaceChildren(shownRow(rows[answer.row], `${data.noun} ${data.ids[answer.row]}`));
  history.replaceState(null, "", `#${encodeURIComponent(data.ids[answer.row])}`);
  drawMap(); await show(); await predict();
}

function order(sign) {
  const rows = answer.scores.map((score, row) => [row, score]).filter(([row, score]) => row !== answer.row && score * sign > 0);
  return rows.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
}

function drawMap() {
  const strong = [1, -1].flatMap(sign => order(sign).slice(0, STRONG).map(([row]) => [row, sign]));
  map.show(answer.row, strong, chosen);
}

function found() {
  const words = get("find").value.toLowerCase(), sign = Number(get("sign").value), cluster = get("cluster").value, only = get("only").checked;
  const size = row => sorted.by === "score" ? Math.abs(answer.scores[row]) : sorted.by === "cluster" ? data.clusters[row] : data.ids[row];
  const rows = [...data.ids.keys()].filter(row => (!sign || Math.sign(answer.scores[row]) === sign) && (cluster === "" || data.clusters[row] === Number(cluster))
    && (!only || chosen.has(row)) && (!words || `${data.ids[row]} ${data.texts[row] || ""}`.toLowerCase().includes(words)));
  return rows.sort((a, b) => {
    const [one, other] = [size(a), size(b)];
    const difference = typeof one === "string" ? one.localeCompare(other, undefined, { numeric: true }) : one - other;
    return (sorted.falling ? -1 : 1) * difference || a - b;
  });
}

async function show() {
  const rows = found(), pages = Math.max(1, Math.ceil(rows.length / MANY));
  at = Math.max(0, Math.min(at, pages - 1));
  const part = rows.slice(at * MANY, at * MANY + MANY), now = answer, count = ++listed;
  const details = await plainly(() => ask("rows", { rows: part, beside: answer.row }));
  if (!details || now !== answer || count !== listed) return;
  get("rows").tBodies[0].replaceChildren(...part.map(row => line(row, details[row])));
  get("count").textContent = `${many(rows.length, data.noun)} found`;
  get("page").textContent = `page ${at + 1} of ${pages}`;
  get("back").disabled = at === 0; get("next").disabled = at >= pages - 1;
}

function line(row, details) {
  const made_ = made("tr"), box = made("input"), name = `${data.noun} ${data.ids[row]}`;
  box.type = "checkbox"; box.checked = chosen.has(row); box.setAttribute("aria-label", `Tick ${name}`);
  box.onchange = () => {
    if (box.checked) chosen.add(row); else chosen.delete(row);
    made_.classList.toggle("chosen", box.checked); drawMap(); predict();
  };
  const cells = [made("td"), made("td", undefined, "id"), made("td", signed(answer.scores[row]), "n"), made("td", data.clusters[row]), made("td")];
  cells[0].append(box);
  cells[1].append(made("span", data.ids[row]), " ");
  if (row === answer.row) cells[1].append(made("span", "(asked about)", "soft"));
  else cells[1].append(button("Ask", `Ask about ${name}`, () => choose({ row })));
  if (details.cells.length) cells[4].append(shownRow(details, name)); else cells[4].append(made("span", details.text));
  made_.append(...cells); made_.classList.toggle("chosen", chosen.has(row));
  return made_;
}

function listen() {
  get("ask").onsubmit = event => { event.preventDefault(); choose({ id: get("ask-id").value }); };
  for (const name of ["first", "second"]) get(name).onchange = () => choose({ row: answer.row, first: Number(get("first").value), second: Number(get("second").value) });
  get("filter").onsubmit = event => event.preventDefault();
  for (const name of ["find", "sign", "cluster", "only"]) get(name).oninput = () => { at = 0; show(); };
  get("strongest").onsubmit = event => {
    event.preventDefault();
    for (const [row] of order(Number(get("which").value)).slice(0, Number(get("many").value))) chosen.add(row);
    drawMap(); show(); predict();
  };
  listenToHeads(() => { at = 0; show(); });
  listenToActs();
  get("back").onclick = () => { at -= 1; show(); };
  get("next").onclick = () => { at += 1; show(); };
}

async function begin() {
  data = await ask("result");
  data.rows = new Map(data.ids.map((label, row) => [label, row]));
  document.title = `Explore ${data.title}`;
  get("title").textContent = data.title;
  get("verdict").textContent = `When it was made: ${data.verdict}`; get("verdict").classList.add(data.level);
  get("remarks").replaceChildren(...data.remarks.map(one => made("li", one)));
  get("command").textContent = data.command; get("about").hidden = false;
  get("ask-label").textContent = data.noun[0].toUpperCase() + data.noun.slice(1); get("id-head").textContent = data.noun;
  get("steps").value = data.steps; get("rate").value = data.rate;
  const numbers = [...Array(data.k).keys()];
  for (const name of ["first", "second", "cluster"]) get(name).append(...numbers.map(cluster => new Option(cluster, cluster)));
  get("legend").replaceChildren(...numbers.map(cluster => {
    const entry = made("span"), mark = document.createElementNS("http://www.w3.org/2000/svg", "svg"), dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    mark.setAttribute("viewBox", "0 0 2 2"); mark.setAttribute("aria-hidden", "true");
    for (const [name, value] of [["cx", 1], ["cy", 1], ["r", 1], ["fill", colourOf(cluster)]]) dot.setAttribute(name, value);
    mark.append(dot); entry.append(mark, `cluster ${cluster}`);
    return entry;
  }), made("span", "★ asked about"), made("span", "red ring: pulled it in, blue ring: pushed it out, thin ring: ticked"));
  map = new Map2D(get("map"), data, row => choose({ row }));
  listen();
  const start = decodeURIComponent(location.hash.slice(1));
  await choose({ row: data.rows.has(start) ? data.rows.get(start) : data.query });
  await look();
}

begin().catch(error => { get("title").textContent = "The result cannot be shown"; get("error").textContent = error.message; });
