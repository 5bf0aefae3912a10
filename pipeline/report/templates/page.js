// Filter, sort and zoom. Without JavaScript the page shows all cards, in their original order.
"use strict";
document.documentElement.classList.add("has-js");

for (const gallery of document.querySelectorAll("[data-gallery]")) {
  const cards = [...gallery.querySelectorAll(".card")];
  const grid = gallery.querySelector(".cards");
  const selects = [...gallery.querySelectorAll("select[data-filter]")];
  const order = gallery.querySelector("select[data-sort]");
  const output = gallery.querySelector("output");

  const show = () => {
    let shown = 0;
    for (const card of cards) {
      card.hidden = !selects.every(({ value, dataset }) =>
        !value || (card.dataset[dataset.filter] || "").split("|").includes(value));
      shown += !card.hidden;
    }
    output.textContent = `${shown} of ${cards.length}`;
  };
  const sort = () => {
    const [key, direction] = order.value.split(" ");
    const sign = direction === "down" ? -1 : 1;
    const sorted = key === "none" ? cards
      : [...cards].sort((one, other) => sign * (Number(one.dataset[key]) - Number(other.dataset[key])));
    grid.append(...sorted);
  };
  selects.forEach((select) => select.addEventListener("change", show));
  if (order) order.addEventListener("change", sort);
  // When a browser goes back to the page, it restores the selection.
  show();
  if (order) sort();
}

const dialog = document.querySelector("dialog");
document.addEventListener("click", (event) => {
  const opener = event.target.closest("button.stack");
  if (opener) {
    const card = opener.closest(".card");
    dialog.querySelector("h3").textContent = card.dataset.name;
    dialog.querySelector(".big").replaceChildren(...[...card.querySelectorAll(".stack")].map((stack) => {
      const copy = document.createElement("div");
      copy.className = stack.className;
      copy.append(...[...stack.children].map((child) => child.cloneNode(true)));
      return copy;
    }));
    dialog.showModal();
  } else if (event.target === dialog || event.target.closest("dialog button")) {
    dialog.close();
  }
});
