// A click on a map tells where, in shares of the picture.
element.addEventListener("click", (event) => {
  const map = event.target.closest("img.ccs-map");
  if (!map) return;
  const box = map.getBoundingClientRect();
  const share = (value, start, length) => Math.min(1, Math.max(0, (value - start) / length));
  trigger("click", {
    x: share(event.clientX, box.left, box.width),
    y: share(event.clientY, box.top, box.height),
  });
});
