"use strict";
(() => {
  const root = document.documentElement;
  const found = (query) => document.querySelector(query);
  const all = (query) => [...document.querySelectorAll(query)];
  const data = JSON.parse(found("#figures").textContent);
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme ?? (prefers.matches ? "dark" : "light");
  const element = (name, text) => Object.assign(document.createElement(name), { textContent: text ?? "" });
  const rowsOf = (columns) => {
    const names = Object.keys(columns);
    return columns[names[0]].map((_, row) => Object.fromEntries(names.map((name) => [name, columns[name][row]])));
  };
  const written = (value) =>
    value === null || value === undefined ? "" : typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value);

  // Pictures: each is drawn when it comes near the screen, and all are before printing.
  const tip = found("#tip");
  const showTip = (_, event, item, value) => {
    if (value === null || value === undefined || typeof value !== "object") { tip.hidden = true; return; }
    tip.replaceChildren(...Object.entries(value).map(([name, shown]) => {
      const line = element("div"), figure = element("bdi", written(shown));
      line.append(element("span", name), figure);
      return line;
    }));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 4))}px`;
    tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18}px`;
  };
  const quiet = { level() { return this; }, error() { return this; }, warn() { return this; }, info() { return this; }, debug() { return this; } };
  const views = new Map();
  const draw = (picture, how) => {
    const chart = data.charts[picture.dataset.chart];
    const values = rowsOf(chart.columns);
    const narrow = picture.clientWidth < 480, config = { ...data.config[how], background: "transparent" };
    if (narrow) config.legend = { ...config.legend, columns: 2, labelLimit: 110 };
    const fitting = (name, value) => (narrow && name === "columns" ? Math.min(2, value) : value);
    const spec = { ...JSON.parse(JSON.stringify(chart.spec, fitting)), data: { values }, config };
    views.get(picture)?.finalize();
    const inside = element("div"); // Vega names what it is given anew, and the label of the picture says what it shows
    inside.setAttribute("aria-hidden", "true");
    picture.replaceChildren(inside);
    const compiled = vegaLite.compile(spec, { logger: quiet }).spec;
    const renderer = values.length > 3000 ? "canvas" : "svg";
    const view = new vega.View(vega.parse(compiled), { renderer, container: inside, hover: true, logger: quiet }).tooltip(showTip);
    view.addEventListener("click", (_, item) => item?.datum?.place !== undefined && showCell(item.datum));
    view.run();
    views.set(picture, view);
    picture.dataset.drawn = how;
  };
  const drawAll = (how) => all(".picture").forEach((picture) => picture.dataset.drawn !== how && draw(picture, how));
  const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting && entry.target.dataset.drawn !== theme()) draw(entry.target, theme());
  }), { rootMargin: "400px" });
  const redraw = () => views.forEach((_, picture) => draw(picture, theme()));
  const start = () => all(".picture").forEach((picture) => near.observe(picture));
  requestAnimationFrame(() => setTimeout(start));
  addEventListener("beforeprint", () => drawAll("light"));
  addEventListener("afterprint", redraw);
  prefers.addEventListener("change", redraw);
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  found("#theme").addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    redraw();
  });

  // The numbers behind a picture, as a table.
  const LIMIT = 1000;
  all("details.numbers").forEach((details) => details.addEventListener("toggle", () => {
    details.querySelector("div")?.remove();
    if (!details.open) return;
    const chart = data.charts[details.closest("figure").querySelector(".picture").dataset.chart];
    const table = element("table"), head = element("tr"), body = element("tbody"), box = element("div");
    Object.values(chart.headings).forEach((title) => head.append(Object.assign(element("th", title), { scope: "col" })));
    rowsOf(chart.columns).slice(0, LIMIT).forEach((row) => {
      const line = element("tr");
      Object.keys(chart.headings).forEach((name) => {
        const cell = element("td"), value = row[name];
        if (typeof value === "number") cell.className = "number";
        cell.append(element("bdi", written(value)));
        line.append(cell);
      });
      body.append(line);
    });
    table.createTHead().append(head);
    table.append(body);
    Object.assign(box, { className: "scroll", tabIndex: 0 });
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `Numbers of: ${chart.title}`);
    box.append(table);
    details.append(box);
  }));

  // One ability at a time.
  const groups = Object.fromEntries(all("script.group").map((script) => [script.dataset.group, JSON.parse(script.textContent)]));
  const ability = found("#ability");
  const showAbility = (number) => all("figure[data-group]").forEach((figure) => {
    const chosen = groups[figure.dataset.group][number];
    if (chosen === undefined) { figure.hidden = true; return; }
    figure.hidden = false;
    const picture = figure.querySelector(".picture"), chart = data.charts[chosen];
    picture.dataset.chart = chosen;
    picture.setAttribute("aria-label", chart.alt);
    figure.querySelector("h3").replaceChildren(element("bdi", chart.title));
    figure.querySelector("details").open = false;
    draw(picture, theme());
  });
  ability?.addEventListener("change", () => {
    showAbility(ability.selectedIndex);
    if (filters && ability.selectedIndex < data.channels.abilities.length) {
      filters.elements.ability.value = String(ability.selectedIndex);
      filter();
    }
  });

  // The table of channels.
  const channels = data.channels, filters = found("#filters");
  const STEP = 100;
  let matching = [], shownRows = STEP, sorted = { key: "score", down: true };
  const site = (row) => channels.sites[channels.site[row]];
  const value = {
    site: (row) => site(row)[0], kind: (row) => site(row)[1], place: (row) => channels.places.indexOf(site(row)[2]),
    row: (row) => channels.row[row], score: (row) => channels.score[row], top: (row) => channels.top[row], moved: (row) => channels.moved[row],
  };
  const cells = (row) => [site(row)[0], channels.row[row], site(row)[1], site(row)[2], channels.score[row], channels.top[row] ? "yes" : "", channels.moved[row] ? "yes" : ""];
  const render = () => {
    found("#table tbody").replaceChildren(...matching.slice(0, shownRows).map((row) => {
      const line = element("tr");
      cells(row).forEach((text, column) => {
        const cell = element("td");
        if (typeof text === "number") cell.className = "number";
        cell.append(element("bdi", column === 4 ? written(text) : String(text)));
        line.append(cell);
      });
      return line;
    }));
    found("#count").textContent = `${matching.length.toLocaleString("en")} channels, ${Math.min(shownRows, matching.length)} shown`;
    found("#more").hidden = shownRows >= matching.length;
  };
  const sort = () => {
    const of = value[sorted.key], sign = sorted.down ? -1 : 1;
    matching.sort((one, other) => {
      const a = of(one), b = of(other);
      return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b) || one - other;
    });
    all("#table th").forEach((head) => {
      if (head.dataset.key === sorted.key) head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    render();
  };
  const filter = () => {
    const { text, ability: of, kind, place, top } = filters.elements, part = text.value.toLowerCase();
    matching = channels.row.map((_, row) => row).filter((row) => {
      const [name, its, where] = site(row);
      return channels.ability[row] === Number(of.value) && (!kind.value || its === kind.value) && (!place.value || where === place.value)
        && (!top.checked || channels.top[row]) && (!part || name.toLowerCase().includes(part));
    });
    shownRows = STEP;
    sort();
  };
  function showCell(cell) {
    if (!filters) return;
    const { kind, place, text, ability: of } = filters.elements;
    kind.value = cell.kind ?? "";
    place.value = cell.place;
    text.value = cell.expert === undefined ? "" : `experts[${cell.expert}]`;
    if (ability && ability.selectedIndex < channels.abilities.length) of.value = String(ability.selectedIndex);
    filter();
    found("#channels").scrollIntoView({ behavior: "smooth" });
  }
  if (!filters) return;
  filters.addEventListener("input", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(filter));
  all("#table th button").forEach((button) => button.addEventListener("click", () => {
    const { key } = button.parentElement.dataset;
    sorted = { key, down: sorted.key === key ? !sorted.down : key === "score" || key === "top" || key === "moved" };
    sort();
  }));
  found("#more").addEventListener("click", () => { shownRows += STEP * 5; render(); });
  found("#export").addEventListener("click", () => {
    const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
    const lines = [["site", "row", "kind", "layer", "score", "chosen", "moved"], ...matching.map(cells)];
    const blob = new Blob([lines.map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n"], { type: "text/csv" });
    const link = Object.assign(element("a"), { href: URL.createObjectURL(blob), download: "channels.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href));
  });
  filter();
})();
