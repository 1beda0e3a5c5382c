// What is ticked, what that would change, and what was tried: the part of a page that all explorers share.
"use strict";
import { ask, button, get, made, many, plainly, progressOf, save, signed } from "./talk.js";

const VERBS = { remove: "trained again without", undo: "undone:", amplify: "amplified:" };

// A page has: noun() of a row, and ticked for the same in a label; question() as the server reads it; the name of its value,
// its unit, and now() for what it is; the pause before a Newton step, in ms; named(entry) for a question in words;
// tried(entry, cell) for the text and the way back of one that was tried; unticked() for when all ticks are gone.
export function acting(page, chosen) {
  let latest = 0, shownState = "", timer = 0;
  const asked = () => ({ ...page.question(), chosen: [...chosen] });

  const what = one => `${VERBS[one.action]} ${many(one.ids.length, page.noun())}: ${one.ids.slice(0, 6).join(", ")}${one.ids.length > 6 ? ", …" : ""}`;

  async function predict() {
    const count = ++latest;
    get("chosen").hidden = chosen.size === 0;
    if (!chosen.size) return;
    get("chosen-count").textContent = `${many(chosen.size, page.noun())} ticked.`;
    const body = asked(), sum = await plainly(() => ask("predict", body));
    if (count !== latest) return;
    if (!sum) { get("predicted").textContent = get("error").textContent; return; }
    const said = `Without them the ${page.value} would change by ${signed(sum.sum)}${page.unit} by the sum of scores`;
    get("predicted").textContent = `${said}…`;
    await new Promise(done => setTimeout(done, page.pause));
    if (count !== latest) return;
    const step = await plainly(() => ask("predict", { ...body, newton: true }));
    if (count !== latest || !step) return;
    get("predicted").textContent = step.newton === null ? `${said}; a Newton step is not to be had: ${step.said}`
      : `${said}, ${signed(step.newton)} by one Newton step, to ${(page.now() + step.newton).toFixed(3)}.`;
  }

  async function act(action) {
    const body = { ...asked(), action };
    if (action !== "remove") Object.assign(body, { steps: Number(get("steps").value), rate: Number(get("rate").value) });
    const begun = await plainly(() => ask("act", body));
    if (begun && begun.entry) get("error").textContent = "That was tried already: see the list below.";
    if (begun) await look();
  }

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
      const item = made("li", `${page.named(job.about)}, ${what(job.about)} `);
      if (job.state === "failed") { item.append(made("span", `failed: ${job.said}`, "error")); return item; }
      item.append(...progressOf(job), button("Stop", undefined, () => plainly(() => ask("stop", { job: job.number })).then(look)));
      return item;
    }));
    const table = get("list");
    table.tBodies[0].replaceChildren(...state.tried.map(one => {
      const row = made("tr"), again = made("td"), done = made("td", what(one)), { asked: text, show } = page.tried(one, done);
      if (show) again.append(button("Show", `Show this question with these ${page.ticked}s ticked`, show));
      row.append(made("td", text), done, made("td", signed(one.predicted), "n"), made("td", signed(one.newton), "n"),
        made("td", signed(one.achieved), "n"), again);
      return row;
    }));
    table.parentElement.hidden = get("share").hidden = state.tried.length === 0;
    get("none").hidden = state.tried.length > 0 || live.length > 0;
  }

  function listen() {
    get("retrain").onclick = () => act("remove");
    for (const one of document.querySelectorAll("[data-act]")) one.onclick = () => act(one.dataset.act);
    for (const one of document.querySelectorAll("[data-export]")) {
      one.onclick = () => save(one.dataset.export, { ...asked(), which: one.dataset.export });
    }
    get("clear").onclick = () => { chosen.clear(); page.unticked(); predict(); };
  }

  return { predict, look, listen };
}

// How the table is ordered; its heads change that: by score the largest come first, by anything else the smallest.
export const order = { by: "score", falling: true };

export function listenToHeads(show) {
  const table = get("rows");
  for (const head of table.querySelectorAll("th button")) head.onclick = () => {
    order.falling = order.by === head.dataset.by ? !order.falling : head.dataset.by === "score"; order.by = head.dataset.by;
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.parentElement.setAttribute("aria-sort", order.falling ? "descending" : "ascending"); show();
  };
}
