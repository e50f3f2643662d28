// A click on an example tells which.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-example]");
  if (button) trigger("click", { example: Number(button.dataset.example) });
});
