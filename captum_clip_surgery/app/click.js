// A click on a picture enlarges it; on an enlarged map it tells where, in shares of the picture.
const enlarge = (figure) => {
  const dialog = document.createElement("dialog");
  const title = figure.closest(".ccs-row")?.querySelector("h2")?.innerText ?? "";
  dialog.className = "ccs-dialog";
  if (figure.closest(".ccs-wide")) dialog.classList.add("ccs-wide");
  dialog.setAttribute("aria-label", `${title} ${figure.querySelector("img").alt}`);
  const heading = document.createElement("h2");
  heading.innerText = title;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "ccs-close";
  close.innerText = "Close";
  const large = figure.cloneNode(true);
  const frame = large.querySelector(".ccs-frame");
  const plain = document.createElement("div");
  plain.className = "ccs-frame";
  plain.append(...frame.childNodes);
  frame.replaceWith(plain);
  dialog.append(close, heading, large);
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target === close) dialog.close();
    if (!event.target.matches("img.ccs-map") || !element.closest("#ccs-maps")) return;
    const box = event.target.getBoundingClientRect();
    const share = (value, start, length) => Math.min(1, Math.max(0, (value - start) / length));
    trigger("click", {
      x: share(event.clientX, box.left, box.width),
      y: share(event.clientY, box.top, box.height),
    });
    dialog.close();
  });
  dialog.showModal();
};
element.addEventListener("click", (event) => {
  const frame = event.target.closest("button.ccs-frame");
  if (frame) enlarge(frame.closest("figure"));
});
