"""The page of report.html: its structure and its looks on screen, phone and paper."""

from __future__ import annotations

from string import Template

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --text: #1f2328; --quiet: #57606a; --line: #d8dce1;
}
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #14171b; --card: #1c2026; --text: #e4e7eb; --quiet: #a3abb5; --line: #343b44; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 68rem;
  background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .8rem; }
p { max-width: 46rem; margin: .6rem 0; }
.lead { font-size: 1.1rem; }
.grid { display: grid; gap: 1rem; }
.samples { grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); }
.curves { grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
figure {
  margin: 0; padding: .75rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem;
}
figure img { display: block; width: 100%; height: auto; border-radius: .25rem; }
figcaption { margin-top: .6rem; font-size: .9rem; line-height: 1.45; color: var(--quiet); }
figcaption strong { display: block; color: var(--text); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td {
  padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line);
}
tbody th { font-weight: normal; }
small { color: var(--quiet); font-weight: normal; }
.total th, .total td { font-weight: 600; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
code {
  padding: .05em .3em; background: var(--line); border-radius: .2em;
  font: .9em ui-monospace, "DejaVu Sans Mono", monospace;
}
footer { margin-top: 2.5rem; color: var(--quiet); font-size: .85rem; }
@media (max-width: 30rem) {
  body { padding: 1rem .75rem 2rem; }
  .settings { font-size: .78rem; }
  .settings th, .settings td { padding-right: .5rem; }
}
@media print {
  @page { margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; background: #fff; color: #000; }
  .grid { gap: 3mm; }
  .samples { grid-template-columns: repeat(4, 1fr); }
  .curves { grid-template-columns: repeat(3, 1fr); }
  figure { padding: 2mm; }
  figcaption { font-size: 8pt; }
  .wide img { max-width: 130mm; }
  h2 { margin: 6mm 0 3mm; }
  table { font-size: 8.5pt; }
  th, td { padding: .6mm 4mm .6mm 0; }
  figure, tr, section:last-of-type { break-inside: avoid; }
  h2 { break-after: avoid; }
}
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="lead">$lead</p>
$introduction
</header>
<main>
$sections
</main>
<footer>Made by dsmooth $version. The numbers are in results.json beside this file.</footer>
</body>
</html>
""")
