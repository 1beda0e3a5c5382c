// The map: every sample a point in the colour of its cluster; a click chooses the nearest one.
"use strict";

export const PALETTE = ["#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#d9b020", "#9d755d", "#ff9da6", "#79706e"];
const EDGE = 14, NEAR = 20;

export function colourOf(cluster) {
  return PALETTE[cluster % PALETTE.length];
}

export class Map2D {
  constructor(canvas, data, choose) {
    this.canvas = canvas; this.data = data; this.strong = []; this.asked = -1; this.chosen = new Set();
    const finite = values => values.filter(value => value !== null);
    this.low = [Math.min(...finite(data.x)), Math.min(...finite(data.y))];
    this.high = [Math.max(...finite(data.x)), Math.max(...finite(data.y))];
    canvas.addEventListener("click", event => {
      const box = canvas.getBoundingClientRect(), row = this.nearest(event.clientX - box.left, event.clientY - box.top);
      if (row >= 0) choose(row);
    });
    canvas.addEventListener("mousemove", event => {
      const box = canvas.getBoundingClientRect(), row = this.nearest(event.clientX - box.left, event.clientY - box.top);
      canvas.title = row < 0 ? "" : `${data.noun} ${data.ids[row]}, cluster ${data.clusters[row]}`;
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  at(row) {
    const size = [this.canvas.clientWidth, this.canvas.clientHeight];
    const share = (value, axis) => (value - this.low[axis]) / (this.high[axis] - this.low[axis] || 1);
    return [EDGE + share(this.data.x[row], 0) * (size[0] - 2 * EDGE), size[1] - EDGE - share(this.data.y[row], 1) * (size[1] - 2 * EDGE)];
  }

  nearest(x, y) {
    let best = -1, least = NEAR * NEAR;
    for (let row = 0; row < this.data.ids.length; row++) {
      const [left, top] = this.at(row), away = (left - x) ** 2 + (top - y) ** 2;
      if (away < least) { least = away; best = row; }
    }
    return best;
  }

  show(asked, strong, chosen) {
    this.asked = asked; this.strong = strong; this.chosen = chosen; this.draw();
  }

  draw() {
    const { canvas, data } = this, scale = devicePixelRatio || 1, pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    canvas.width = canvas.clientWidth * scale; canvas.height = canvas.clientHeight * scale;
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    const size = data.ids.length > 3000 ? 1.5 : 2.5;
    pen.globalAlpha = 0.6;
    for (let row = 0; row < data.ids.length; row++) this.dot(pen, row, size, colourOf(data.clusters[row]));
    pen.globalAlpha = 1; pen.lineWidth = 2;
    for (const [row, sign] of this.strong) this.ring(pen, row, 6, style.getPropertyValue(sign > 0 ? "--in" : "--out"));
    pen.lineWidth = 1;
    for (const row of this.chosen) this.ring(pen, row, 4, style.getPropertyValue("--ink"));
    if (this.asked >= 0) this.star(pen, this.asked, style.getPropertyValue("--ink"));
  }

  dot(pen, row, size, colour) {
    const [x, y] = this.at(row);
    pen.fillStyle = colour; pen.beginPath(); pen.arc(x, y, size, 0, 7); pen.fill();
  }

  ring(pen, row, size, colour) {
    const [x, y] = this.at(row);
    pen.strokeStyle = colour; pen.beginPath(); pen.arc(x, y, size, 0, 7); pen.stroke();
  }

  star(pen, row, colour) {
    const [x, y] = this.at(row);
    pen.fillStyle = colour; pen.beginPath();
    for (let corner = 0; corner < 10; corner++) {
      const angle = Math.PI * (corner / 5 - 0.5), size = corner % 2 ? 4.5 : 11;
      pen.lineTo(x + size * Math.cos(angle), y + size * Math.sin(angle));
    }
    pen.fill();
  }
}
