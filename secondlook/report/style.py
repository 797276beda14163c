"""The page's style sheet. Line and mark colours are Okabe and Ito's, darkened or lightened until text in them has a
contrast of 4.5 on their ground."""

STYLE = """
:root { color-scheme: light dark; --bg: #f6f6f3; --card: #fff; --sunk: #f1f1ed; --ink: #1c1d20; --mute: #5c6067;
  --rule: #dfdfd9; --score: #0067a8; --judge: #9a5a00; --second: #a1347f; --checker: #00704f; --no: #b3261e; --won: #0067a8; --wash:
  #e5f0f8; --grid: #e9e9e4; --shade: #0002 }
@media (prefers-color-scheme:dark) {
  :root { --bg: #121315; --card: #1a1c1f; --sunk: #222529; --ink: #e8e8e5; --mute: #a3a8af; --rule: #30343a; --score:
    #6db8f2; --judge: #f0ab4f; --second: #e79ac9; --checker: #4fcaa2; --no: #ff8d80; --won: #6db8f2; --wash: #1b2c3a; --grid: #292c31;
    --shade: #0008 }
}
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100% }
body { margin: 0; background: var(--bg); color: var(--ink); font: 16px/1.5 ui-sans-serif, system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: anywhere
  }
header, main, footer { max-width: 70rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem) }
header { padding-top: clamp(1.5rem, 5vw, 3.5rem) }
h1 { font-size: clamp(1.75rem, 5vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em; font-weight: 650; margin: 0 0
  .9rem; text-wrap: balance }
h2 { font-size: 1.2rem; line-height: 1.35; font-weight: 620; letter-spacing: -.005em; margin: 0; text-wrap: balance }
h3 { font-size: .95rem; font-weight: 600; margin: 1.4rem 0 .5rem }
h3 a { font-weight: 400; font-size: .85rem; color: var(--mute); margin-left: .6rem }
p { margin: 0 0 .5rem }
a { color: inherit }
:focus-visible { outline: 2px solid var(--won); outline-offset: 2px; border-radius: 4px }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size:
  .875em }
.brand { font-size: .85rem; font-weight: 600; color: var(--mute); margin: 0 0 .35rem }
.note, .mute, .none { color: var(--mute); font-size: .875rem }
.none { padding: 1rem; border: 1px dashed var(--rule); border-radius: 8px }
.label { font-size: .925rem; color: var(--mute); max-width: 62ch; margin: 0 0 .6rem }
.label b { display: inline-block; padding: .05rem .6rem; margin-right: .35rem; border-radius: 99px; font-weight: 600;
  font-size: .85rem; color: var(--checker); border: 1px solid currentColor }
.label.open b { color: var(--judge) }
.label.oracle b { color: var(--card); background: var(--judge); border-color: var(--judge) }
.label code { color: var(--ink); background: var(--sunk); padding: .1rem .35rem; border-radius: 5px }
dl { margin: 0 }
dd { margin: 0 }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 1.1rem 0 1.6rem }
.facts dt { font-size: .8rem; color: var(--mute) }
.facts dd { font-size: .95rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(13.5rem, 100%), 1fr)); gap: 1px;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 14px; overflow: hidden; margin-bottom: 2.2rem
  }
.tile { background: var(--card); padding: 1rem 1.15rem .8rem }
.tile p { margin: 0 }
.tile .name { font-size: .85rem; color: var(--mute) }
.tile .value { font-size: clamp(1.2rem, 1.75vw, 1.65rem); font-weight: 620; letter-spacing: -.02em; line-height: 1.35; white-space: nowrap }
.to { color: var(--mute); font-weight: 400; padding: 0 .3em }
main > section, .prompt, footer > section { background: var(--card); border: 1px solid var(--rule); border-radius:
  14px; padding: clamp(1rem, 3vw, 1.75rem); margin: 0 0 1.25rem }
main > h2 { margin: 2.2rem 0 .4rem }
section.overall { display: grid; grid-template-columns: minmax(0, 20rem) minmax(0, 1fr); gap: 1rem clamp(1.5rem, 4vw,
  3rem) }
.overall .note { margin: .4rem 0 .8rem }
.overall .plot { justify-self: end; width: 100% }
.no-of { color: var(--mute); font-weight: 400; margin-right: .2em }
.two { display: grid; grid-template-columns: minmax(0, 25rem) minmax(0, 1fr); gap: 1rem clamp(1.5rem, 4vw, 3rem);
  align-items: start; margin-top: .8rem; grid-template-areas: "seen plot" "paid plot"; grid-template-rows: auto 1fr }
.seen { grid-area: seen }
.paid { grid-area: paid }
.two .plot { grid-area: plot }
.two > * { min-width: 0 }
figure { margin: 0 }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 12rem)); gap: 1rem; margin-bottom: .5rem }
.big { border-radius: 10px; overflow: hidden; background: var(--sunk); box-shadow: 0 0 0 1px var(--rule) }
.shot.won .big { box-shadow: 0 0 0 3px var(--won) }
.big img { display: block; width: 100%; height: auto }
.big a { display: block }
.file { float: right; font-size: .8rem; color: var(--mute) }
.crisp { image-rendering: pixelated }
.big .blank { aspect-ratio: 1; width: 100% }
figcaption { margin-top: .55rem }
.shot figcaption { font-size: .925rem }
.shot .mute { display: inline-block }
.shot dl { margin-top: .3rem; font-size: .875rem }
.shot dl div { display: flex; justify-content: space-between; gap: .5rem; border-top: 1px solid var(--rule); padding:
  .2rem 0 }
.shot dt { color: var(--mute) }
.shot dd { font-weight: 550 }
.score dt::before, .judge dt::before, .second dt::before, .checker dt::before { content: ""; display: inline-block; width: .6em; height:
  .6em; border-radius: 99px; margin-right: .45em; background: var(--score) }
.judge dt::before { background: var(--judge) }
.second dt::before { background: var(--second) }
.checker dt::before { background: var(--checker) }
.ok { color: var(--checker) }
.no { color: var(--no) }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: .875rem; width: 100% }
th, td { overflow-wrap: normal; text-align: right; padding: .28rem 0 .28rem .8rem; border-top: 1px solid var(--rule);
  vertical-align: top; font-weight: 400 }
thead th { white-space: nowrap; border-top: 0; color: var(--mute); font-size: .8rem }
th:first-child { text-align: left; padding-left: 0; color: var(--mute) }
.settings td { text-align: left; overflow-wrap: anywhere }
.settings th { width: 30% }
.bar { display: block; height: 3px; border-radius: 2px; background: var(--grid); margin-top: .25rem; min-width: 3.5rem
  }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--mute) }
.plot { max-width: 36rem }
.chart { display: block; width: 100%; height: auto; overflow: visible }
.chart text { font-size: 13px; fill: var(--mute) }
.chart .label { font-weight: 600; margin: 0 }
.chart .label.score, .chart text.score { fill: var(--score) }
.chart text.judge { fill: var(--judge) }
.chart text.second { fill: var(--second) }
.chart text.checker { fill: var(--checker) }
.grid { stroke: var(--grid); stroke-width: 1 }
.line { fill: none; stroke-width: 2; stroke: var(--score); stroke-linejoin: round }
.line.judge { stroke: var(--judge); stroke-dasharray: 7 3 }
.line.second { stroke: var(--second); stroke-dasharray: 9 3 2 3 }
.line.checker { stroke: var(--checker); stroke-dasharray: 2 3; stroke-width: 2.2 }
.dot { fill: var(--mute); stroke: var(--mute); stroke-width: 1.4; opacity: .85; cursor: pointer }
.dot.hollow { fill: var(--card) }
.dot.lit { fill: var(--won); stroke: var(--won); opacity: 1; r: 5.5px }
.base { fill: var(--card); stroke: var(--ink); stroke-width: 1.6 }
.key { list-style: none; padding: 0; margin: .2rem 0 0; font-size: .8rem; color: var(--mute); display: grid; gap:
  .15rem }
.key li { display: flex; gap: .6rem }
.key svg { flex: none; margin-top: .4em }
.box { max-height: 84rem; overflow: auto; background: var(--sunk); border-radius: 10px; padding: .75rem }
.families { display: flex; flex-wrap: wrap; gap: 1rem 1.25rem; align-items: flex-start; min-width: 0 }
.family { overflow-x: auto; max-width: 100%; padding: 3px }
.tree { position: relative }
.tree ol, .draws, .overview { list-style: none; margin: 0; padding: 0 }
.links { position: absolute; inset: 0; pointer-events: none }
.links path { fill: none; stroke: var(--mute); stroke-width: 1.2; opacity: .55 }
.links .won { stroke: var(--won); stroke-width: 2.4; opacity: 1 }
.panel { position: absolute; background: var(--card); border-radius: 9px; box-shadow: 0 0 0 1px var(--rule) }
.panel > ol > li { position: absolute }
.of { position: absolute; left: 10px; right: 8px; top: 4px; font-size: 11px; line-height: 16px; color: var(--mute);
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.draws { display: flex; flex-wrap: wrap; gap: 2px }
.card { width: 72px; height: 104px; padding: 4px; border-radius: 8px; font-size: 11.5px; line-height: 1.3; cursor:
  pointer; scroll-margin: 6rem }
.pic { position: relative; display: block; width: 64px; height: 64px }
.pic img { box-shadow: 0 0 0 1px var(--rule); display: block; width: 64px; height: 64px; object-fit: contain;
  border-radius: 5px }
.blank { display: flex; align-items: center; justify-content: center; width: 64px; height: 64px; border-radius: 5px;
  color: var(--mute); background: var(--sunk); font-size: 11px; text-align: center }
.card .id { display: flex; justify-content: space-between; gap: 2px; color: var(--mute); margin-top: 2px }
.card .val { font-weight: 550 }
.card.half .pic { outline: 1.5px dashed var(--mute); outline-offset: -1px; border-radius: 5px }
.card.half img { opacity: .6 }
.time { position: absolute; left: 3px; bottom: 3px; padding: 0 4px; border-radius: 4px; background: var(--card);
  color: var(--ink); font-size: 10.5px }
.card.line { background: var(--wash) }
.card.won { background: var(--wash); box-shadow: inset 0 0 0 2px var(--won) }
.star { position: absolute; left: 0; right: 0; bottom: -1px; text-align: center; background: var(--won); color:
  var(--card); font-size: 10.5px; font-weight: 650; border-radius: 0 0 5px 5px }
.card.lit { box-shadow: inset 0 0 0 2px var(--ink) }
.large .card { width: calc(var(--w) + 8px); height: calc(var(--h) + 40px) }
.large .pic, .large .pic img, .large .pic .blank { width: var(--w); height: var(--h) }
.large .pair { grid-template-columns: repeat(2, minmax(0, 27rem)) }
main.large ~ #peek img { width: 192px; height: auto; max-height: 192px }
.card a { color: inherit }
.whole { margin: .3rem 0 .5rem; font-size: .9rem; color: var(--mute) }
.whole p { white-space: pre-wrap; color: var(--ink); max-width: 75ch; margin: .3rem 0 }
details.more { width: 100% }
summary { cursor: pointer }
.more > summary, .plain > summary { font-size: .925rem; color: var(--mute); padding: .3rem 0 }
details.prompt { padding: 0; content-visibility: auto; contain-intrinsic-size: auto 3.4rem }
details.prompt > summary { display: flex; gap: .4rem 1rem; justify-content: space-between; align-items: baseline;
  flex-wrap: wrap; padding: .8rem clamp(1rem, 3vw, 1.75rem); list-style: none; border-radius: 14px }
details.prompt > summary::-webkit-details-marker { display: none }
details.prompt > summary h2 { font-size: 1rem; flex: 1 1 14rem; min-width: 0; font-weight: 550 }
details.prompt > summary::before { content: "›"; color: var(--mute); width: .5rem; transition: none }
details.prompt[open] > summary::before { content: "⌄" }
details.prompt .body { padding: 0 clamp(1rem, 3vw, 1.75rem) clamp(1rem, 3vw, 1.75rem) }
details.prompt { margin-bottom: .5rem }
.gist { color: var(--mute); font-size: .9rem }
.anchor { display: block; scroll-margin-top: 4.5rem }
.overview { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(10.5rem, 100%), 1fr)); gap: .6rem;
  margin-top: .9rem }
.overview a { display: flex; flex-direction: column; gap: .35rem; height: 100%; padding: .6rem; border-radius: 10px;
  text-decoration: none; background: var(--sunk); font-size: .85rem; line-height: 1.35 }
.overview a:hover { box-shadow: 0 0 0 2px var(--won) }
.talk { list-style: none; margin: 0; padding: 0; display: grid; gap: .8rem }
.talk li { display: flex; gap: .9rem; align-items: flex-start }
.talk .try { flex: none; width: 72px }
.talk .try img { width: 64px; height: auto; border-radius: 6px }
.talk .said { display: inline-block; margin: 0; padding: .45rem .8rem; border-radius: 4px 12px 12px 12px; background: var(--sunk); max-width: 60ch }
.talk .accepted { background: var(--wash); color: var(--checker) }
.shots { display: flex; gap: 6px }
.shots img { width: calc(50% - 3px); height: auto; border-radius: 6px }
.shots img + img { box-shadow: 0 0 0 2px var(--won) }
.what { flex: 1 }
.nums { color: var(--mute); display: flex; justify-content: space-between }
button { font: inherit; font-size: .85rem; color: var(--ink); background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; padding: .3rem .8rem; cursor: pointer }
button:hover { border-color: var(--mute) }
footer { padding-top: 1.5rem; padding-bottom: 4rem }
footer h2 { margin-bottom: .6rem }
.code { display: flex; gap: .5rem; align-items: flex-start; margin-bottom: 1rem }
.code pre { flex: 1; min-width: 0; margin: 0; padding: .7rem .9rem; background: var(--card); border: 1px solid
  var(--rule); border-radius: 10px; overflow-x: auto; user-select: all; overflow-wrap: normal }
.code button { flex: none; margin-top: .35rem }
.failures h2 { color: var(--no) }
.failures pre { overflow-x: auto; background: var(--sunk); padding: .8rem; border-radius: 8px; overflow-wrap: normal }
.plain { border-top: 1px solid var(--rule); padding: .35rem 0 }
.words div { padding: .35rem 0 }
.words dt { font-weight: 600; font-size: .9rem }
.words dd { color: var(--mute); font-size: .9rem; max-width: 65ch }
#peek { position: fixed; right: 1rem; bottom: 1rem; z-index: 9; display: flex; gap: .8rem; max-width: min(24rem,
  calc(100vw - 2rem)); padding: .7rem; background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  box-shadow: 0 8px 30px var(--shade); font-size: .85rem; pointer-events: none }
#peek[hidden] { display: none }
#peek img { width: 128px; height: 128px; object-fit: contain; border-radius: 8px; flex: none }
#peek ul { list-style: none; margin: 0; padding: 0; min-width: 0 }
#peek li:first-child { font-weight: 600 }
@media (min-width:56.01rem) {
  .large .two { grid-template-areas: "seen seen" "paid plot" }
}
@media (max-width:56rem) {
  .two, section.overall { grid-template-columns: minmax(0, 1fr) }
  .two { grid-template-areas: "seen" "plot" "paid"; grid-template-rows: auto }
  .overall .plot { justify-self: start }
}
@media (max-width:30rem) {
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .tile { padding: .8rem .75rem .6rem }
  .tile .value { font-size: 1.15rem; white-space: normal; overflow-wrap: normal }
  .tile .to { display: inline-block }
  .pair { gap: .75rem }
  .large .pair { grid-template-columns: minmax(0, 1fr) }
  .code { flex-direction: column; align-items: stretch }
  .code button { align-self: flex-start; margin: 0 }
  .box { margin: 0 -.4rem; padding: .5rem }
  #peek { left: .5rem; right: .5rem; bottom: .5rem; max-width: none }
  #peek img { width: 96px; height: 96px }
  .overview { grid-template-columns: repeat(2, minmax(0, 1fr)) }
}
@media print {
  body { background: #fff }
  .box { max-height: none }
  .prompt, .tile { break-inside: avoid }
  button { display: none }
}
"""
