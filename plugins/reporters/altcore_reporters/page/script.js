"use strict";
// What a page gains with JavaScript: sorting, lighting up, reading values, zooming. It is complete without.
(() => {
  const WIDTH = 2000, HEIGHT = 400, MANY = 12;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const readout = document.querySelector(".readout");

  // Sorting ---------------------------------------------------------------------------------------

  function sortable(table) {
    all("thead th", table).forEach((th, column) => {
      if (!th.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = th.textContent;
      button.addEventListener("click", () => sort(table, th, column));
      th.replaceChildren(button);
    });
  }

  function sort(table, th, column) {
    const way = th.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    all("[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.key === undefined ? cell.textContent.trim() : Number(cell.dataset.key);
    };
    const compare = (a, b) => {
      if (typeof a === "string" || typeof b === "string") {
        return way * String(a).localeCompare(String(b), "en", { numeric: true });
      }
      if (a === b) return 0;
      if (a === Infinity || b === Infinity) return a === Infinity ? 1 : -1; // not known: last, both ways
      return way * (a - b);
    };
    const body = table.tBodies[0];
    const rows = all("tr", body).map((row) => [value(row), row]);
    body.append(...rows.sort((a, b) => compare(a[0], b[0])).map((pair) => pair[1]));
  }

  // Lighting up -----------------------------------------------------------------------------------

  const area = document.querySelector(".plots");
  let pressed = null;

  function light(selector) {
    if (!area) return;
    all(".lit", area).forEach((element) => element.classList.remove("lit"));
    area.classList.toggle("dim", Boolean(selector));
    if (selector) all(selector, area).forEach((element) => element.classList.add("lit"));
  }

  const selectorOf = (element) =>
    element.dataset.g === "-1" ? `.c${element.dataset.c}` : `[data-g="${element.dataset.g}"]`;

  function lights(element) {
    element.addEventListener("pointerenter", () => light(selectorOf(element)));
    element.addEventListener("pointerleave", () => light(pressed && selectorOf(pressed)));
  }

  function legendItem(item) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.append(...item.childNodes);
    item.append(button);
    button.addEventListener("click", () => {
      if (pressed) pressed.firstChild.setAttribute("aria-pressed", "false");
      pressed = pressed === item ? null : item;
      button.setAttribute("aria-pressed", String(pressed === item));
      light(pressed && selectorOf(pressed));
    });
    lights(item);
  }

  // Reading values --------------------------------------------------------------------------------

  function points(path) {
    const found = [];
    let x = 0, y = 0, command = "M";
    const tokens = path.getAttribute("d").match(/[a-zA-Z]|-?\d+/g) || [];
    for (let i = 0; i < tokens.length;) {
      if (/[a-zA-Z]/.test(tokens[i])) command = tokens[i++];
      if (command === "M") [x, y] = [Number(tokens[i++]), Number(tokens[i++])];
      else if (command === "l") [x, y] = [x + Number(tokens[i++]), y + Number(tokens[i++])];
      else if (command === "h") x += Number(tokens[i++]);
      else if (command === "v") y += Number(tokens[i++]);
      found.push([x, y]);
    }
    return found;
  }

  function nearest(line, x) {
    let low = 0, high = line.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (line[middle][0] < x) low = middle; else high = middle;
    }
    return x - line[low][0] <= line[high][0] - x ? line[low] : line[high];
  }

  const word = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e6 || size < 1e-4 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };

  const view = [0, 1]; // what of the axis of steps is shown
  let at = null; // where the cursor is, on the whole axis

  class Plot {
    constructor(element) {
      this.element = element;
      this.svg = element.querySelector("svg");
      this.x = element.dataset.x.split(" ").map(Number);
      this.y = element.dataset.y.split(" ").map(Number);
      this.cursor = document.createElement("span");
      this.cursor.className = "cursor";
      this.cursor.hidden = true;
      element.append(this.cursor);
      element.tabIndex = 0;
      all(".mark", element).forEach((mark) => { mark.dataset.at = parseFloat(mark.style.left) / 100; });
      element.addEventListener("pointermove", (event) => this.move(event));
      element.addEventListener("pointerleave", () => hide());
      element.addEventListener("pointerdown", (event) => this.drag(event));
      element.addEventListener("dblclick", () => zoom(0, 1));
      element.addEventListener("keydown", (event) => this.key(event));
      element.addEventListener("blur", () => hide());
    }

    get lines() {
      // The paths hold all that is drawn: they are read when somebody asks.
      this.read ??= all(".line:not(.raw)", this.svg).map((path) => ({
        path, label: path.querySelector("title").textContent, points: points(path),
      }));
      return this.read;
    }

    value(y) {
      const share = 1 - y / HEIGHT, [low, high] = this.y;
      const value = "log" in this.element.dataset
        ? low * (high / low) ** share : low + share * (high - low);
      return "share" in this.element.dataset ? `${word(Number((100 * value).toPrecision(3)))} %` : word(value);
    }

    where(event) {
      const box = this.element.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      return view[0] + share * (view[1] - view[0]);
    }

    move(event) {
      const box = this.element.getBoundingClientRect();
      at = this.where(event);
      this.tell(((event.clientY - box.top) / box.height) * HEIGHT, event.clientX, event.clientY);
    }

    tell(y, left, top) {
      const x = at * WIDTH;
      let found = this.lines.map((line) => ({ ...line, point: nearest(line.points, x) }));
      if (found.length > MANY) {
        found.sort((a, b) => Math.abs(a.point[1] - y) - Math.abs(b.point[1] - y));
        found = found.slice(0, 1);
        light(`[data-g="${found[0].path.dataset.g}"]`);
      }
      const place = found[0].point[0] / WIDTH;
      const step = Math.round(this.x[0] + place * (this.x[1] - this.x[0]));
      const lines = found.map((line) => `${line.label}: ${this.value(line.point[1])}`);
      show([`step ${step}`, ...lines].join("\n"), left, top);
      for (const plot of plots) plot.follow();
    }

    follow() {
      const share = (at - view[0]) / (view[1] - view[0]);
      this.cursor.hidden = share < 0 || share > 1;
      this.cursor.style.left = `${100 * share}%`;
    }

    drag(event) {
      if (event.pointerType === "touch" || event.button !== 0) return;
      const first = event.clientX, start = this.where(event);
      const picked = document.createElement("span");
      picked.className = "picked";
      const box = this.element.getBoundingClientRect();
      const follow = (moved) => {
        const low = Math.max(box.left, Math.min(first, moved.clientX));
        picked.style.left = `${low - box.left}px`;
        picked.style.width = `${Math.min(box.right, Math.max(first, moved.clientX)) - low}px`;
        this.element.append(picked);
        moved.preventDefault();
      };
      const end = (last) => {
        document.removeEventListener("pointermove", follow);
        picked.remove();
        if (Math.abs(last.clientX - first) < 8) return;
        const stop = this.where(last);
        zoom(Math.min(start, stop), Math.max(start, stop));
      };
      document.addEventListener("pointermove", follow);
      document.addEventListener("pointerup", end, { once: true });
      event.preventDefault();
      this.element.focus({ preventScroll: true });
    }

    key(event) {
      const width = view[1] - view[0];
      const size = width / (event.shiftKey ? 10 : 100);
      if (event.key === "Escape") { zoom(0, 1); hide(); return; }
      at ??= view[0] + width / 2;
      if (event.key === "ArrowRight") at = Math.min(view[1], at + size);
      else if (event.key === "ArrowLeft") at = Math.max(view[0], at - size);
      else if (event.key === "Home") at = view[0];
      else if (event.key === "End") at = view[1];
      else if (event.key === "+") zoom(at - width / 4, at + width / 4);
      else if (event.key === "-") zoom(at - width, at + width);
      else return;
      event.preventDefault();
      const box = this.element.getBoundingClientRect();
      const share = (at - view[0]) / (view[1] - view[0]);
      this.tell(HEIGHT / 2, box.left + share * box.width, Math.max(0, box.top));
    }

    show() {
      const [from, to] = view, [low, high] = this.x;
      this.svg.setAttribute("viewBox", `${from * WIDTH} 0 ${(to - from) * WIDTH} ${HEIGHT}`);
      for (const mark of all(".mark", this.element)) {
        const share = (mark.dataset.at - from) / (to - from);
        mark.hidden = share < 0 || share > 1;
        mark.style.left = `${100 * share}%`;
      }
      this.ticks ??= all(".x", this.element);
      all(".x", this.element).forEach((tick) => tick.remove());
      if (from === 0 && to === 1) { this.element.append(...this.ticks); return; }
      const first = low + from * (high - low), last = low + to * (high - low);
      const rough = Math.max(1, (last - first) / 6), power = 10 ** Math.floor(Math.log10(rough));
      const each = Math.max(1, [1, 2, 5, 10].map((m) => m * power).find((size) => size >= rough));
      for (let step = Math.ceil(first / each) * each; step <= last; step += each) {
        const tick = document.createElement("span");
        tick.className = "x";
        tick.style.left = `${(100 * (step - first)) / (last - first)}%`;
        tick.textContent = step;
        this.element.append(tick);
      }
    }
  }

  function show(text, left, top) {
    readout.textContent = text;
    readout.hidden = false;
    const box = readout.getBoundingClientRect();
    const x = left + 16 + box.width > innerWidth ? left - 16 - box.width : left + 16;
    readout.style.left = `${Math.max(4, x)}px`;
    readout.style.top = `${Math.max(4, Math.min(top + 12, innerHeight - box.height - 4))}px`;
  }

  function hide() {
    readout.hidden = true;
    at = null;
    for (const plot of plots) plot.cursor.hidden = true;
    light(pressed && selectorOf(pressed));
  }

  // Zooming ---------------------------------------------------------------------------------------

  const plots = all(".plot").map((element) => new Plot(element));
  const back = document.createElement("button");
  back.type = "button";
  back.className = "back";
  back.textContent = "All steps";
  back.hidden = true;
  back.addEventListener("click", () => zoom(0, 1));
  document.querySelector("#over-steps")?.append(" ", back);

  function zoom(from, to) {
    view[0] = Math.max(0, from);
    view[1] = Math.min(1, to);
    if (view[1] - view[0] < 1e-4) [view[0], view[1]] = [0, 1];
    back.hidden = view[0] === 0 && view[1] === 1;
    for (const plot of plots) plot.show();
  }

  // Heat maps -------------------------------------------------------------------------------------

  function heat(element) {
    const svg = element.querySelector(".cells svg");
    const layers = all(".layers span", element).map((span) => span.textContent);
    const steps = element.dataset.steps.split(" "), edges = element.dataset.edges.split("|");
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const share = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value * count)));
      const row = share((event.clientY - box.top) / box.height, layers.length);
      const column = share((event.clientX - box.left) / box.width, steps.length);
      const level = /^h(\d)$/.exec(event.target.getAttribute("class") || "");
      const value = level ? `${edges[level[1]]} to ${edges[Number(level[1]) + 1]}` : "not measured";
      show(`${layers[row]}, step ${steps[column]}\n${value}`, event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", hide);
  }

  // Tables that are wider than the window scroll by keyboard, in every browser.
  const reachable = new ResizeObserver((entries) => {
    for (const { target: box } of entries) {
      const scrolls = box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX === "auto";
      if (scrolls) box.tabIndex = 0; else box.removeAttribute("tabindex");
    }
  });
  all(".scroll").forEach((box) => reachable.observe(box));

  all("table.sortable").forEach(sortable);
  all(".legend [data-g]").forEach(legendItem);
  all("tr[data-g], .end[data-g]").forEach(lights);
  all(".heat").forEach(heat);
})();
