// Keeps the view in this browser tab, so that a reload shows it again.
(settings, image, query) => {
  try {
    const view = settings ? JSON.parse(settings) : null;
    const keep = (images) =>
      sessionStorage.setItem("ccs-view", JSON.stringify({ settings: view, ...images }));
    sessionStorage.setItem("ccs-link", location.search);
    try {
      keep({ image, query });
    } catch {
      keep({ image });  // two large images can exceed the storage; the reload says so
    }
  } catch {
    sessionStorage.removeItem("ccs-view");  // no storage
  }
}
