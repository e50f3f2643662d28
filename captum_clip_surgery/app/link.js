// The whole address, as this browser knows it.
(end) => (end && end.startsWith("?") ? location.origin + location.pathname + end : end)
