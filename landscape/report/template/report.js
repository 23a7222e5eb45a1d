"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const figures = [...document.querySelectorAll("figure.plot")];
  const parsed = (figure, kind) => JSON.parse(figure.querySelector(`script.${kind}`).textContent);

  // A figure is stored in its light colors with a table of what each becomes on a dark ground.
  const recolored = (value, colors, key = "") => {
    if (typeof value === "string") return key.includes("color") && value in colors ? colors[value] : value;
    if (Array.isArray(value)) return value.map((item) => recolored(item, colors, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, recolored(item, colors, name)]));
    }
    return value;
  };

  // Plotly writes arrays of numbers as base64; only plain ones and 32-bit floats occur on the y axes.
  const numbers = (values) => {
    if (Array.isArray(values)) return values;
    return [...new Float32Array(Uint8Array.from(atob(values.bdata), (character) => character.charCodeAt(0)).buffer)];
  };

  // The range is that of lines and raw values; a band that reaches to 0 or below is drawn down to the axis.
  const logarithmic = (data, layout) => {
    const leader = (name) => layout[`yaxis${name.slice(1)}`].matches ?? name;
    const ranges = {};
    for (const trace of data) {
      const [low, high] = ranges[leader(trace.yaxis)] ?? [Infinity, 0];
      const positive = trace.fill ? [] : numbers(trace.y).filter((value) => value > 0 && value < Infinity);
      ranges[leader(trace.yaxis)] = positive.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [low, high]);
    }
    const changed = { ...layout, shapes: [] };
    for (const [name, axis] of Object.entries(layout)) {
      if (!name.startsWith("yaxis")) continue;
      const [low, high] = ranges[leader(`y${name.slice(5)}`)] ?? [1, 10];
      const ends = high > 0 ? [Math.log10(low), Math.log10(high)] : [0, 1];
      const margin = 0.04 * (ends[1] - ends[0]) || 0.1;
      const ticks = ends[1] - ends[0] < 2 ? { dtick: "D2" } : {};
      changed[name] = { ...axis, ...ticks, type: "log", range: [ends[0] - margin, ends[1] + margin] };
    }
    const clipped = data.map((trace) => {
      if (!trace.fill) return trace;
      const floor = 10 ** changed[`yaxis${trace.yaxis.slice(1)}`].range[0];
      return { ...trace, y: numbers(trace.y).map((value) => Math.max(value, floor)) };
    });
    return [clipped, changed];
  };

  const draw = (figure, isDark) => {
    const canvas = figure.querySelector(".canvas");
    const view = figure.dataset.view ? `-${figure.dataset.view}` : "";
    let { data, layout } = parsed(figure, `data${view}`);
    if (isDark) [data, layout] = recolored([data, layout], parsed(figure, `colors${view}`));
    if (figure.dataset.log) [data, layout] = logarithmic(data, layout);
    const options = { format: "svg", filename: figure.id };
    return Plotly.react(canvas, data, { ...layout, autosize: true },
      { responsive: true, displaylogo: false, toImageButtonOptions: options, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
  };

  // One after the other, so that the page can be read and scrolled while the rest is drawn.
  const drawAll = (isDark) => figures.reduce(
    (before, figure) => before.then(() => new Promise((done) => setTimeout(() => draw(figure, isDark).then(done), 0))),
    Promise.resolve());
  if (window.Plotly) drawAll(dark.matches);
  dark.addEventListener("change", () => drawAll(dark.matches));
  window.addEventListener("beforeprint", () => { if (dark.matches) figures.forEach((figure) => draw(figure, false)); });
  window.addEventListener("afterprint", () => { if (dark.matches) drawAll(true); });

  const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const decoded = (text) => new DOMParser().parseFromString(text, "text/html").documentElement.textContent;
  const csv = (canvas) => {
    const rows = ["series,name,panel,x,y"];
    for (const trace of canvas._fullData) {
      if (trace.fill === "toself" || trace.name === "end") continue;
      const series = trace.hoverinfo === "skip" ? "raw" : "line";
      for (let i = 0; i < trace.x.length; i += 1) {
        if (Number.isFinite(trace.y[i])) {
          const label = trace.hoverinfo === "skip" ? `${trace.legendgroup}, ${trace.name}` : trace.name;
          rows.push([series, quoted(decoded(label)), trace.xaxis.slice(1) || 1, trace.x[i], trace.y[i]].join(","));
        }
      }
    }
    return rows.join("\n") + "\n";
  };

  for (const figure of figures) {
    figure.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-action]");
      if (!button) return;
      if (button.dataset.action === "log") {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        figure.dataset.log = on ? "1" : "";
        draw(figure, dark.matches);
      } else if (button.dataset.action === "view") {
        const on = figure.dataset.view !== button.dataset.view;
        figure.dataset.view = on ? button.dataset.view : "";
        for (const other of figure.querySelectorAll("button[data-action=view]")) {
          other.setAttribute("aria-pressed", String(on && other === button));
        }
        // Gives back the WebGL view, of which a browser grants a page but a few.
        Plotly.purge(figure.querySelector(".canvas"));
        draw(figure, dark.matches);
      } else {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([csv(figure.querySelector(".canvas"))], { type: "text/csv" }));
        link.download = `${figure.id}.csv`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      }
    });
  }

  const table = document.querySelector("table.sortable");
  if (!table) return;
  const bodies = () => [...table.tBodies];
  const key = (body, column) => {
    const cell = body.rows[0].cells[column];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    const number = text === "" || text === "–" ? NaN : Number(text);
    return Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => {
    const numeric = [typeof a === "number", typeof b === "number"];
    if (numeric[0] && numeric[1]) return a - b;
    if (numeric[0] !== numeric[1]) return numeric[0] ? -1 : 1;
    return String(a).localeCompare(String(b));
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = bodies().sort((a, b) => compare(key(a, column), key(b, column)) * (down ? -1 : 1));
      table.append(...sorted);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    let shown = 0;
    for (const body of bodies()) {
      const text = body.textContent.toLowerCase();
      body.hidden = !words.every((word) => text.includes(word));
      shown += body.hidden ? 0 : 1;
    }
    document.getElementById("count").textContent = words.length ? `${shown} of ${bodies().length}` : "";
  });
})();
