// On a narrow screen, results come into view.
() => { if (innerWidth < 768) document.querySelector("#ccs-tabs").scrollIntoView(); }
