"use strict";

const byText = new Intl.Collator("en", { numeric: true });

/* Numbers carry their value in `data-key`, which is empty where it is not known; other cells compare as text. */
function compare(a, b, direction) {
  if (a.dataset.key === undefined) return direction * byText.compare(a.textContent, b.textContent);
  if (a.dataset.key === "" || b.dataset.key === "") return (a.dataset.key === "") - (b.dataset.key === "");
  return direction * (Number(a.dataset.key) - Number(b.dataset.key));
}

function sortBy(header) {
  const column = header.cellIndex;
  const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  const direction = order === "ascending" ? 1 : -1;
  const body = header.closest("table").tBodies[0];
  body.append(...[...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column], direction)));
}

for (const button of document.querySelectorAll(".sortable button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
