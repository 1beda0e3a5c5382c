// What both explorers share: they ask the server they came from, and nobody else. Whatever the data holds is put in as text.
"use strict";

export const get = id => document.getElementById(id);

export async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let reply;
  try { reply = await fetch(`api/${path}`, options); } catch { throw new Error("The server has ended. Start crossfluence explore again."); }
  if (reply.ok) return path === "export" ? reply.blob() : reply.json();
  const said = await reply.text();
  let sentence = said;
  try { sentence = JSON.parse(said).said || said; } catch { /* plain text */ }
  throw new Error(sentence);
}

export async function plainly(work) {
  get("error").textContent = "";
  try { return await work(); } catch (error) { get("error").textContent = error.message; return null; }
}

export function made(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) { element.textContent = text; element.dir = "auto"; }
  if (name) element.className = name;
  return element;
}

export function button(text, label, work) {
  const element = made("button", text);
  element.type = "button"; element.onclick = work;
  if (label) element.setAttribute("aria-label", label);
  return element;
}

export const signed = (value, digits = 4) => value === null ? "" : (value > 0 ? "+" : "") + Number(value).toPrecision(digits);
export const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

export async function save(which, body) {
  const file = await plainly(() => ask("export", body));
  if (!file) return;
  const link = made("a");
  link.href = URL.createObjectURL(file); link.download = which === "rest" ? "all-others.csv" : "chosen.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

export function progressOf(job) {
  const bar = made("progress");
  bar.setAttribute("aria-label", job.state);
  if (job.total) { bar.max = job.total; bar.value = job.done; }
  const far = job.total ? `${Math.floor(100 * job.done / job.total)} % ` : job.done ? `step ${job.done} ` : "predicting ";
  return [bar, " ", made("span", job.state === "waiting" ? "waiting " : far)];
}
