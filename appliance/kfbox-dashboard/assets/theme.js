// Before the first paint: the theme that was chosen, if one was.
(() => {
  try {
    const theme = localStorage.getItem("kfbox-theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch { /* storage is closed to us: the system's theme it is */ }
})();
