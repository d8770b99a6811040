"""How the page looks: one column on a phone, cards in rows on a wide screen, light or dark as the reader has it."""

STYLE = """
:root{--bg:#fbfbfa;--card:#fff;--ink:#1d2125;--soft:#5d666f;--edge:#e0e3e6;--track:#eef0f2;
--ours:#0a6cbd;--other:#9aa6b2;--direct:#c9ced3;--whisker:#1d2125}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--ink:#e7eaed;--soft:#9aa4ad;--edge:#30363c;
--track:#262b30;--ours:#57aefb;--other:#6f7b87;--direct:#474f57;--whisker:#e7eaed}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:16px}
h1{font-size:1.6rem;margin:.5em 0}h2{font-size:1.25rem;margin:2em 0 .6em}h3{font-size:1.05rem;margin:0}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;font-size:.85rem;margin:0 0 1em}
.facts dt{color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}
ul{font-size:.85rem;padding-left:1.2em}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:16px}
.card{background:var(--card);border:1px solid var(--edge);border-radius:8px;padding:14px 16px;min-width:0}
.card p{margin:.2em 0 .6em;color:var(--soft);font-size:.9rem}.card .remark{font-size:.8rem}
figure{margin:.6em 0}figcaption{font-size:.85rem;font-weight:600}
svg{display:block;width:100%;max-width:560px;height:auto;margin-top:4px;font:12px system-ui,sans-serif}
svg text{fill:var(--ink)}.value{text-anchor:end;font-variant-numeric:tabular-nums}
.track{fill:var(--track)}.bar.ours{fill:var(--ours)}.bar.other{fill:var(--other)}.bar.direct{fill:var(--direct)}
.whisker{stroke:var(--whisker);fill:none;stroke-width:1.2}
.grid{stroke:var(--edge)}.line{fill:none;stroke-width:2;stroke:var(--other)}.line.ours{stroke:var(--ours)}
svg .tick-x,svg .tick-y{fill:var(--soft);font-size:10px}.tick-x{text-anchor:middle}.tick-y{text-anchor:end}
svg .key.ours{fill:var(--ours)}
.wide{overflow-x:auto}a{color:var(--ours)}
table{border-collapse:collapse;font-size:.78rem;font-variant-numeric:tabular-nums;margin-top:.4em}
th,td{padding:3px 9px;border-bottom:1px solid var(--edge);text-align:right;white-space:nowrap;font-weight:400}
th:first-child{text-align:left;padding-left:0}thead th{color:var(--soft)}
@media print{.card{break-inside:avoid}}
"""
