// A picture pasted anywhere on the page is taken like a chosen file.
() => document.addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData;
  // Where text is written, text goes first: office programs give a picture of it as well.
  if (event.target.matches("textarea, input") && types.includes("text/plain")) return;
  const file = [...files].find(({ type }) => type.startsWith("image/"));
  if (!file || !document.querySelector("#ccs-upload")) return;  // on the guide
  event.preventDefault();
  const input = document.querySelector("#ccs-upload input[type=file]");
  if (!input) {  // gone once its button for pasting was used, which reads the clipboard itself
    document.querySelector("#ccs-upload [aria-label='Paste from clipboard']").click();
    return;
  }
  const chosen = new DataTransfer();
  chosen.items.add(file);
  input.files = chosen.files;
  input.dispatchEvent(new Event("change"));
});
