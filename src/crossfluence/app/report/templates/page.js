"use strict";
(() => {
  const rows = JSON.parse(document.getElementById("data").textContent);
  const get = id => document.getElementById(id), kindOf = get("rows").dataset.kind, many = 25;
  const kind = get("kind"), body = get("rows").tBodies[0];
  let by = "score", falling = true, at = 0, open = null;
  const link = document.createElement("a");
  link.href = encodeURIComponent(get("sheet").dataset.name);
  link.textContent = get("sheet").dataset.name;
  get("sheet").replaceChildren(link);
  if (kind) for (const value of [...new Set(rows.map(row => row[kindOf]))].sort((a, b) => a > b ? 1 : -1).slice(0, 500))
    kind.append(new Option(value, value));
  const cell = (text, name) => {
    const made = document.createElement("td");
    made.textContent = text; made.dir = "auto"; if (name) made.className = name;
    return made;
  };
  const size = row => by === "score" ? Math.abs(row.score) : row[by];
  function chosen() {
    const words = get("find").value.toLowerCase(), sign = Number(get("sign").value);
    const fits = row => (!sign || Math.sign(row.score) === sign) && (!kind || !kind.value || String(row[kindOf]) === kind.value)
      && (!words || (row.id + " " + row.text).toLowerCase().includes(words));
    return rows.filter(fits).sort((a, b) => (size(a) > size(b) ? 1 : size(a) < size(b) ? -1 : 0) * (falling ? -1 : 1));
  }
  function show() {
    const found = chosen(), pages = Math.max(1, Math.ceil(found.length / many));
    at = Math.min(at, pages - 1);
    body.replaceChildren(...found.slice(at * many, at * many + many).map(row => {
      const line = document.createElement("tr"), text = cell(row.text.length > 160 && open !== row ? row.text.slice(0, 160) + "…" : row.text);
      line.append(cell(row.id, "id"), cell((row.score > 0 ? "+" : "") + row.score.toPrecision(4), "n"), cell(row[kindOf]), text);
      if (row.text.length > 160) {
        line.tabIndex = 0; line.setAttribute("aria-expanded", open === row);
        const turn = () => { open = open === row ? null : row; show(); };
        line.onclick = turn; line.onkeydown = event => { if (event.key === "Enter") turn(); };
      }
      return line;
    }));
    get("count").textContent = found.length.toLocaleString("en") + " found";
    get("page").textContent = `page ${at + 1} of ${pages}`;
    get("back").disabled = at === 0; get("next").disabled = at >= pages - 1;
  }
  for (const button of get("rows").querySelectorAll("button")) button.onclick = () => {
    falling = by === button.dataset.by ? !falling : button.dataset.by === "score"; by = button.dataset.by; at = 0;
    for (const head of get("rows").querySelectorAll("th[aria-sort]")) head.setAttribute("aria-sort", "none");
    button.parentElement.setAttribute("aria-sort", falling ? "descending" : "ascending"); show();
  };
  get("choose").onsubmit = event => event.preventDefault();
  for (const input of [get("find"), get("sign"), kind]) if (input) input.oninput = () => { at = 0; show(); };
  get("back").onclick = () => { at -= 1; show(); };
  get("next").onclick = () => { at += 1; show(); };
  show();
})();
