// On a narrow screen, messages come into view.
(message) => {
  if (innerWidth >= 768 || !message) return;
  setTimeout(() => document.querySelector("#ccs-notices").scrollIntoView({ block: "nearest" }), 50);
}
