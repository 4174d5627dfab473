"use strict";

const find = (query, root = document) => root.querySelector(query);

function make(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

// Sorting: by number where every cell of the column is one; what is no number stays at the end.

function key(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.v ?? cell.textContent.trim();
  return { text, number: text === "" ? NaN : Number(text) };
}

function sortBy(head) {
  const body = head.closest("table").tBodies[0];
  const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const rows = [...body.rows].map((row) => ({ row, ...key(row, head.cellIndex) }));
  const isNumeric = rows.every(({ text, number }) => text === "" || !Number.isNaN(number));
  rows.sort((one, other) => {
    if (!isNumeric) return direction * one.text.localeCompare(other.text, "en", { numeric: true });
    if (Number.isNaN(one.number) || Number.isNaN(other.number)) {
      return Number.isNaN(one.number) - Number.isNaN(other.number);
    }
    return direction * (one.number - other.number);
  });
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
  body.append(...rows.map(({ row }) => row));
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (button) sortBy(button.closest("th"));
});

// Rounds: the plans of a run lie compressed in the page, and are unpacked when it is chosen.

const inspected = JSON.parse(find("#plans").textContent);
const chooser = { run: find("#run"), round: find("#round"), now: 0 };

async function unpacked(run) {
  if (!run.rows) {
    const bytes = Uint8Array.from(atob(run.packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    run.rows = JSON.parse(await new Response(stream).text());
  }
  return run.rows;
}

function shown(value) {
  if (value === null) return "–";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

function lane(plan, window) {
  const bar = make("div", undefined, "lane");
  const scale = 100 / Math.max(window.end - window.start, 1e-12);
  const parts = [["", plan.start - window.start], ...plan.parts];
  for (const [kind, length] of parts) {
    const part = make("i", undefined, kind);
    part.style.width = `${scale * length}%`;
    if (kind) part.title = `${kind} ${shown(length)} s`;
    bar.append(part);
  }
  return bar;
}

function planRow(plan, columns, window) {
  const row = make("tr");
  plan.cells.forEach((value, index) => {
    const { name, is_text: isText } = columns[index];
    const isBad = name === "outcome" && value !== "aggregated";
    const cell = make(index ? "td" : "th", shown(value), isBad ? "text bad" : isText ? "text" : "");
    cell.dataset.v = value ?? "";
    row.append(cell);
  });
  const cell = make("td");
  cell.dataset.v = plan.start;
  cell.append(lane(plan, window));
  row.insertBefore(cell, row.cells[inspected.lane]);
  return row;
}

function windowOf(plans) {
  const ends = plans.map((plan) => plan.start + plan.parts.reduce((sum, part) => sum + part[1], 0));
  return { start: Math.min(...plans.map((plan) => plan.start)), end: Math.max(...ends) };
}

async function showRound() {
  const ticket = ++chooser.now;
  const run = inspected.runs[Number(chooser.run.value)];
  const { rounds, plans } = await unpacked(run);
  if (ticket !== chooser.now) return; // another round was chosen meanwhile
  const last = rounds.length - 1;
  const number = Math.min(Math.max(Math.round(Number(chooser.round.value)) || 0, 0), last);
  chooser.round.max = last;
  chooser.round.value = number;
  find("#last").textContent = `of ${last}`;
  const facts = Object.entries(rounds[number]).map(([name, value]) => {
    const box = make("div");
    box.append(make("dt", name), make("dd", shown(value)));
    return box;
  });
  find("#facts").replaceChildren(...facts);
  const here = plans[number] ?? [];
  const window = windowOf(here);
  const rows = here.map((plan) => planRow(plan, inspected.columns, window));
  const body = find("#devices tbody");
  body.replaceChildren(...rows);
  for (const head of find("#devices thead tr").cells) head.removeAttribute("aria-sort");
  find("#nobody").hidden = here.length > 0;
  find("#nobody").textContent = number < run.num_shown ? "No plan was handed out." : run.note;
}

function step(by) {
  chooser.round.value = Number(chooser.round.value) + by;
  showRound();
}

chooser.run.addEventListener("change", showRound);
chooser.round.addEventListener("change", showRound);
find("#earlier").addEventListener("click", () => step(-1));
find("#later").addEventListener("click", () => step(1));
find("#only").addEventListener("change", (event) => {
  for (const row of document.querySelectorAll("#settings-table tbody tr:not(.differs)")) {
    row.hidden = event.target.checked;
  }
});
showRound();
