"""How a report looks: wide, narrow, dark, light, on paper."""

STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #16191d; --soft: #5d6672;
  --line: #dfe3e8; --accent: #3559e0; --good: #17803d; --look: #a86200; --bad: #c42b2b;
  --fill: #3559e022; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1216; --card: #181c22; --ink: #e8ebef;
  --soft: #98a2af; --line: #2a3039; --accent: #8aa4ff; --good: #4ac776; --look: #f0b34a;
  --bad: #ff7b72; --fill: #8aa4ff26; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 44px 0 4px; font-size: 20px; letter-spacing: -.01em; }
h3 { margin: 0; font-size: 15px; }
p { margin: 4px 0; }
.soft { color: var(--soft); }
.names { margin: 6px 0 0; overflow-wrap: anywhere; color: var(--soft); }
.names b { color: var(--ink); font-weight: 600; }
a { color: var(--accent); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 16px; min-width: 0; overflow-wrap: anywhere; }
.headline { display: flex; gap: 10px; align-items: center; margin: 22px 0 14px; font-size: 18px;
  font-weight: 600; }
.mark { flex: none; display: inline-grid; place-items: center; width: 22px; height: 22px;
  border-radius: 50%; color: var(--card); font-size: 13px; font-weight: 700; line-height: 1; }
.good .mark { background: var(--good); } .look .mark { background: var(--look); }
.bad .mark { background: var(--bad); }
.limits { border-color: var(--bad); margin-bottom: 14px; }
.limits.held { border-color: var(--good); }
.limits ul { margin: 4px 0 0; padding-left: 20px; }
.checks { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 12px; }
.checks .card { display: flex; gap: 12px; }
.checks p { margin: 2px 0 0; color: var(--soft); font-size: 14px; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; margin-top: 12px; }
.chart { display: flex; flex-direction: column; } .chart:first-child { grid-column: 1 / -1; }
.chart .what { flex: 1; }
.chart .head { display: flex; flex-wrap: wrap; gap: 2px 16px; align-items: baseline;
  justify-content: space-between; }
.chart .head span { font-variant-numeric: tabular-nums; color: var(--soft); font-size: 14px; }
.chart .what { margin: 2px 0 10px; color: var(--soft); font-size: 13px; }
.plot { position: relative; height: 110px; margin-left: 44px;
  border-bottom: 1px solid var(--line); }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot path { vector-effect: non-scaling-stroke; }
.plot .area { fill: var(--fill); stroke: none; }
.plot .edge { fill: none; stroke: var(--accent); stroke-width: 1.5; stroke-linejoin: round; }
.plot .grid { stroke: var(--line); } .plot .cut { stroke: var(--soft); stroke-dasharray: 4 4; }
.plot .lost { stroke: var(--bad); stroke-width: 2; }
.plot i { position: absolute; right: 100%; margin-right: 8px; transform: translateY(-50%);
  font-style: normal; font-size: 12px; color: var(--soft); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.ticks { display: flex; justify-content: space-between; margin: 4px 0 0 44px; font-size: 12px;
  color: var(--soft); font-variant-numeric: tabular-nums; }
.pins { position: relative; height: 24px; margin-left: 44px; }
.pins a { position: absolute; top: 0; transform: translateX(-50%); min-width: 20px; height: 20px;
  padding: 0 4px; border-radius: 10px; background: var(--accent); color: var(--card);
  font-size: 12px; font-weight: 700; line-height: 20px; text-align: center;
  text-decoration: none; }
.legend { margin: 8px 0 0; font-size: 13px; color: var(--soft); }
.legend b { display: inline-block; width: 0; height: 13px; margin: 0 6px 0 14px;
  vertical-align: -2px; border-left: 2px dotted var(--soft); }
.legend b.lost { border-left: 2px solid var(--bad); } .legend b:first-child { margin-left: 0; }
.moment { margin-top: 14px; scroll-margin-top: 12px; break-inside: avoid; }
.moment:target { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
.moment .head { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: center;
  margin-bottom: 10px; }
.rank { display: inline-grid; place-items: center; min-width: 26px; height: 26px; padding: 0 6px;
  border-radius: 13px; background: var(--accent); color: var(--card); font-weight: 700;
  font-size: 13px; }
.when { font-weight: 600; font-variant-numeric: tabular-nums; }
.code { color: var(--soft); font-variant-numeric: tabular-nums; font-size: 14px; }
.why { display: flex; flex-wrap: wrap; gap: 6px; margin-left: auto; }
.why span { padding: 1px 10px; border: 1px solid var(--line); border-radius: 12px;
  font-size: 13px; }
.stills { display: grid; grid-template-columns: repeat(4, 1fr); gap: 10px; }
.stills.tall { grid-template-columns: repeat(4, minmax(0, 240px)); }
figure { margin: 0; min-width: 0; }
figure div { position: relative; border-radius: 6px; overflow: hidden; background: var(--line); }
img { display: block; width: 100%; height: auto; }
.box { position: absolute; border: 2px solid #ff5a36; border-radius: 2px;
  box-shadow: 0 0 0 1px #000a; }
figcaption { margin-top: 4px; font-size: 13px; color: var(--soft); }
.files { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 12px;
  margin-top: 12px; }
table { width: 100%; border-collapse: collapse; margin-top: 8px; font-size: 14px; }
th, td { padding: 4px 0; border-top: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
th { width: 92px; padding-right: 12px; font-weight: 400; color: var(--soft); }
details { margin-top: 8px; } summary { cursor: pointer; color: var(--soft); font-size: 14px; }
.times { margin-top: 12px; font-size: 14px; font-variant-numeric: tabular-nums; }
footer { margin-top: 40px; font-size: 13px; color: var(--soft); }
@media (max-width: 720px) {
  main { padding: 20px 14px 32px; } h1 { font-size: 23px; }
  .checks, .charts { grid-template-columns: 1fr; }
  .stills, .stills.tall { grid-template-columns: 1fr 1fr; } .why { margin-left: 0; }
  .pins a { min-width: 10px; width: 10px; height: 10px; padding: 0; top: 6px; font-size: 0; }
  .files { grid-template-columns: 1fr; } .plot, .ticks, .pins { margin-left: 40px; }
}
@media print {
  :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #bbb; --accent: #1f3fb8;
    --good: #17803d; --look: #a86200; --bad: #c42b2b; --fill: #3559e022; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; } .chart, .checks .card { break-inside: avoid; }
}
"""
