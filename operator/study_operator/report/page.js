"use strict";
(() => {
  // What a person chose outlives a reload of this page in this tab, where the browser keeps anything for a file.
  const kept = {
    read: (key) => { try { return sessionStorage.getItem(`report-${key}`); } catch { return null; } },
    write: (key, value) => { try { sessionStorage.setItem(`report-${key}`, value); } catch { /* kept by nobody */ } },
  };

  document.getElementById("scriptless").hidden = true;

  // --- Light and dark ---

  const theme = document.getElementById("theme");
  const THEMES = ["auto", "light", "dark"];
  const setTheme = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    theme.textContent = `colours: ${name}`;
    theme.dataset.now = name;
  };
  setTheme(THEMES.includes(kept.read("theme")) ? kept.read("theme") : "auto");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(theme.dataset.now) + 1) % THEMES.length];
    kept.write("theme", next);
    setTheme(next);
  });

  // --- Leaderboard ---

  const board = document.getElementById("leaderboard");
  const body = board.tBodies[0];
  const rows = [...body.rows];
  const heads = [...board.tHead.rows[0].cells];
  const filter = document.getElementById("filter");
  const state = document.getElementById("state");
  const count = document.getElementById("count");

  // Numbers by size, words by letters; what is missing stands last in either direction.
  const orderOf = (row, column) => {
    const cell = row.cells[column], text = (cell.dataset.order ?? cell.textContent).trim();
    if (text === "") return null;
    const number = Number(text);
    return Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  const sortBy = (column, direction) => {
    const sorted = [...rows];
    if (direction !== "none") {
      const sign = direction === "descending" ? -1 : 1;
      sorted.sort((one, other) => {
        const a = orderOf(one, column), b = orderOf(other, column);
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * compare(a, b);
      });
    }
    body.append(...sorted);
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
    kept.write("sort", JSON.stringify([heads[column].textContent, direction]));
  };
  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sortBy(column, NEXT[head.getAttribute("aria-sort")]));
  });

  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(words.every((word) => text.includes(word)) && (!state.value || row.dataset.state === state.value));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} trials`;
    kept.write("filter", filter.value);
    kept.write("state", state.value);
  };
  filter.addEventListener("input", show);
  state.addEventListener("change", show);
  document.getElementById("tools").hidden = rows.length === 0;
  filter.value = kept.read("filter") ?? "";
  state.value = kept.read("state") ?? "";
  if (state.selectedIndex < 0) state.value = "";
  try {
    const [name, direction] = JSON.parse(kept.read("sort"));
    const column = heads.findIndex((head) => head.textContent === name);
    if (column >= 0 && direction in NEXT) sortBy(column, direction);
  } catch { /* nothing was kept */ }
  show();

  // --- Charts ---

  const { config, datasets, specs } = JSON.parse(document.getElementById("chart-data").textContent);
  const views = [];
  let picked = "";
  const pick = (name) => {
    picked = picked === name ? "" : name;
    for (const row of rows) {
      row.classList.toggle("picked", row.dataset.trial === picked);
      row.querySelector("button.trial").setAttribute("aria-pressed", String(row.dataset.trial === picked));
    }
    for (const [key, view] of views) {
      if (specs[key].params?.some((param) => param.name === "picked")) view.signal("picked", picked).runAsync();
    }
  };
  for (const row of rows) {
    const head = row.cells[0], button = document.createElement("button");
    button.type = "button";
    button.className = "trial";
    button.title = "show this trial in the charts";
    button.setAttribute("aria-pressed", "false");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => pick(row.dataset.trial));
  }

  // Nothing is made of texts: expressions are walked through and not compiled, which the page's policy would refuse.
  const options = { config, actions: false, ast: true, defaultStyle: false, renderer: "svg", tooltip: { disableDefaultStyle: true } };
  const draw = async () => {
    for (const place of document.querySelectorAll(".chart[data-chart]")) {
      const key = place.dataset.chart;
      views.push([key, (await vegaEmbed(place, { ...specs[key], datasets }, options)).view]);
    }
    document.documentElement.dataset.drawn = "true";
  };
  draw();

  // What is folded away is printed too where it is meant to be read.
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details.printed")) part.open = true;
  });
})();
