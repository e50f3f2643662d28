// The view that this browser tab kept, if it is of this address.
() => {
  try {
    if (sessionStorage.getItem("ccs-link") !== location.search) return "";
    return sessionStorage.getItem("ccs-view") ?? "";
  } catch {
    return "";
  }
}
