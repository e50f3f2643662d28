// Keeps the view in this browser tab, so that a reload shows it again.
(settings, image, query) => {
  try {
    const view = settings ? JSON.parse(settings) : null;
    sessionStorage.setItem("ccs-view", JSON.stringify({ settings: view, image, query }));
    sessionStorage.setItem("ccs-link", location.search);
  } catch {
    sessionStorage.removeItem("ccs-view");  // too large an image, or no storage
  }
}
